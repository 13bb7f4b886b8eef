"""The configuration: one YAML file, one frozen pydantic model a section, the only place where a default lives."""

from merit.config.root import RunConfig
from merit.config.yaml_file import load_config

__all__ = ["RunConfig", "load_config"]
