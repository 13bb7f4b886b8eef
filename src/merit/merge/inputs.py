"""Opens what is merged, whole checkpoints and adapters alike, as sources with the output's tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError
from merit.merge.compatibility import align
from merit.merge.lora import AdapterSource, FactorCache
from merit.merge.source import CheckpointSource, checkpoint_source
from merit.models.adapter import Adapter, base_of, is_adapter
from merit.models.checkpoint import Checkpoint, TensorInfo


@dataclass(frozen=True)
class OpenedInputs:
    """Sources in the order of the inputs, and θ0. `tensors` has the output's names and shapes, in order."""

    sources: tuple[CheckpointSource | AdapterSource, ...]
    base: CheckpointSource | None
    tensors: tuple[TensorInfo, ...]
    config_folder: Path  # whose config.json the output gets
    notes: tuple[str, ...]


def open_inputs(paths: Sequence[Path], base: Path | None) -> OpenedInputs:
    """Reads headers only. With adapters alone, the base says which tensors there are.

    Raises:
        InputError: an input that cannot be read, or does not fit the others; an adapter without its base.
    """
    for path in (*paths, *([base] if base is not None else [])):
        if not path.is_dir():
            raise InputError("no such folder", file=path)
    adapters = [path for path in paths if is_adapter(path)]
    if base is None and adapters:
        # What an adapter says of itself is no leave to open a folder: it may have come from anywhere.
        raise InputError(
            f"an adapter, trained on {base_of(adapters[0]) or 'an unnamed model'}; name its base with --base",
            file=adapters[0],
        )
    if base is not None and is_adapter(base):
        raise InputError("an adapter cannot be the base of a merge; name the model it was trained on", file=base)
    whole = [path for path in paths if not is_adapter(path)] + ([base] if base is not None else [])
    opened = [Checkpoint.open(path) for path in whole]
    alignment = align(opened)
    found = [checkpoint_source(one, names) for one, names in zip(opened, alignment.matched, strict=True)]
    theta0 = found.pop() if base is not None else None
    first = opened[0]
    cache = FactorCache()
    sources: list[CheckpointSource | AdapterSource] = []
    remaining = iter(found)
    for path in paths:
        if not is_adapter(path):
            sources.append(next(remaining))
        elif theta0 is not None:
            adapter = Adapter.open(path, opened[-1])
            sources.append(AdapterSource(path, adapter, theta0, theta0.tensors, cache))
    tensors = tuple(first.tensors[name] for name in alignment.names)
    return OpenedInputs(tuple(sources), theta0, tensors, first.path, alignment.notes)
