"""One row of a stored dataset. Its images stay in the mapped file until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from merit.data.example import Encoded, TokenRow


class StoredImages(Sequence[bytes]):
    """The images of one row, copied out of the file at each access: a thousand rows cost no memory for theirs."""

    def __init__(self, scalar: Any) -> None:
        self._scalar = scalar  # pyarrow's list, which points into the file

    def __len__(self) -> int:
        return len(self._scalar)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self._scalar[index].as_py()


@dataclass(frozen=True)
class StoredExample:
    """One row. Lists as in `Encoded`; `prompt_ids` is what greedy decoding starts from."""

    id: str
    held_out: bool
    input_ids: list[int]
    labels: list[int]
    supervised: int
    truncated: bool
    prompt_ids: list[int]
    prompt_text: str
    reference: str | None = None
    verifier: str | None = None
    pictures: Sequence[bytes] = field(default=(), repr=False)
    prompt_images: int = 0  # of them, those that greedy decoding starts from

    @property
    def token_row(self) -> TokenRow:
        """Ids and labels, with the images."""
        return TokenRow.of(self.input_ids, self.labels, self.pictures)

    @property
    def encoded(self) -> Encoded:
        return Encoded(self.input_ids, self.labels, False, self.pictures, self.prompt_images)

    @classmethod
    def of(
        cls,
        id: str,
        encoded: Encoded,
        *,
        held_out: bool = True,
        prompt_ids: list[int],
        prompt_text: str,
        reference: str | None = None,
        verifier: str | None = None,
    ) -> StoredExample:
        """Puts an encoded example together with what its evaluation needs."""
        return cls(
            id,
            held_out,
            encoded.input_ids,
            encoded.labels,
            encoded.supervised,
            encoded.truncated,
            prompt_ids,
            prompt_text,
            reference,
            verifier,
            encoded.images,
            encoded.prompt_images,
        )
