"""The configuration: one YAML file, one frozen pydantic model a section, the only place where a default lives.

pydantic is imported with the first of them: `merit --help` needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merit.config.run import RunConfig
    from merit.config.yaml import load_config

__all__ = ["RunConfig", "load_config"]


def __getattr__(name: str) -> Any:
    home = {"RunConfig": "merit.config.run", "load_config": "merit.config.yaml"}.get(name)
    if home is None:
        raise AttributeError(f"module 'merit.config' has no attribute {name!r}")
    return getattr(import_module(home), name)
