"""What the checks compute on: a few short texts of very different lengths, so that padding is most of a batch."""

from __future__ import annotations

import itertools
from typing import Any

from merit.data.example import IGNORED, Encoded
from merit.errors import InputError
from merit.evaluation.drift import general_prompts

GROUPS = 4  # small datasets, for cosines between them
EXAMPLES = 6  # a dataset
_LINES = (1, 3, 2, 5, 1, 4)  # of text, an example
_MOST = 96  # tokens


def material(tokenizer: Any) -> list[list[Encoded]]:
    """`GROUPS` datasets of `EXAMPLES` examples; the second half of each is supervised.

    Raises:
        InputError: the tokenizer makes nothing of English text.
    """
    lines = itertools.cycle(general_prompts())
    groups = []
    for _ in range(GROUPS):
        texts = ["\n".join(itertools.islice(lines, _LINES[k])) for k in range(EXAMPLES)]
        groups.append([_encode(tokenizer, item) for item in texts])
    return groups


def _encode(tokenizer: Any, text: str) -> Encoded:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])[:_MOST]
    if len(ids) < 2:
        raise InputError("this tokenizer makes fewer than two tokens of an English sentence", field="--model")
    prompt = len(ids) // 2
    return Encoded(ids, [IGNORED] * prompt + ids[prompt:])
