"""Which parameters of a model are the weights of linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.base.files import read_json
from merit.models.architecture import saved_shapes
from merit.models.layout import find_layout, same_names
from merit.models.plain_decoders import plain_tensors

if TYPE_CHECKING:
    from torch import nn


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Parameter name → the linear layer it is the weight of. A head that is tied to the embeddings is no layer of its
    own: its rows are used as embeddings, too."""
    from torch import nn

    embeddings = {id(item.weight) for item in model.modules() if isinstance(item, nn.Embedding)}
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings
    }


def linear_weights(folder: Path, names: Iterable[str], *, trust_remote_code: bool = False) -> dict[str, bool]:
    """Those of a checkpoint's `names` that are linear layers' weights in the model of `folder` → whether they are
    stored as (inputs × outputs). Experts that are stored one by one are linear layers each.

    Raises:
        InputError: `folder` is not loadable.
    """
    plain = plain_tensors(read_json(folder / "config.json"))
    if plain is not None:
        found = {name: False for name in plain if name.endswith("_proj.weight") or name == "lm_head.weight"}
    else:
        found = _asked(folder, trust_remote_code)
    theirs = find_layout(names).names
    known = find_layout(found).names
    same = same_names(list(known), theirs)
    return {theirs[name]: found[known[mine]] for name, mine in same.items()}


def _asked(folder: Path, trust_remote_code: bool) -> dict[str, bool]:
    """As the model itself has them, by its own names."""
    from transformers.pytorch_utils import Conv1D

    from merit.models.loading import empty_model

    model: Any = empty_model(folder, trust_remote_code=trust_remote_code)
    found = dict.fromkeys(linear_layers(model), False)
    found |= {f"{path}.weight": True for path, module in model.named_modules() if isinstance(module, Conv1D)}
    saved, own = saved_shapes(model), set(model.state_dict())
    return found | {n: False for n, shape in saved.items() if n not in own and ".experts." in n and len(shape) == 2}
