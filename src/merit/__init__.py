"""merit: decentralized merge-ready instruction tuning.

Every stage is a function from files to files; these are the ones behind the commands. They are imported when first
used, so that `import merit` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merit.config import RunConfig, load_config
    from merit.conflict.step import measure_conflict
    from merit.context import RunContext
    from merit.data.build import build_mixture
    from merit.gradients.collect import collect_sketches
    from merit.merge.average import merge_checkpoints
    from merit.pipeline import run_pipeline
    from merit.report.build import build_report
    from merit.split.splitter import SplitRequest, make_partition
    from merit.train.branch import train_branch

__version__ = "0.2.0"

_HOME = {
    "RunConfig": "merit.config",
    "RunContext": "merit.context",
    "SplitRequest": "merit.split.splitter",
    "build_mixture": "merit.data.build",
    "build_report": "merit.report.build",
    "collect_sketches": "merit.gradients.collect",
    "load_config": "merit.config",
    "make_partition": "merit.split.splitter",
    "measure_conflict": "merit.conflict.step",
    "merge_checkpoints": "merit.merge.average",
    "run_pipeline": "merit.pipeline",
    "train_branch": "merit.train.branch",
}

__all__ = [
    "RunConfig",
    "RunContext",
    "SplitRequest",
    "build_mixture",
    "build_report",
    "collect_sketches",
    "load_config",
    "make_partition",
    "measure_conflict",
    "merge_checkpoints",
    "run_pipeline",
    "train_branch",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'merit' has no attribute {name!r}")
