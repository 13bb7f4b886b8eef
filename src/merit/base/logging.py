"""Loggers under the name `merit`; the root logger and other libraries' loggers are never touched."""

from __future__ import annotations

import logging

_ROOT = "merit"


def get_logger(name: str) -> logging.Logger:
    """The logger of one module; `name` is its `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def add_handler(handler: logging.Handler, *, level: int = logging.INFO) -> None:
    """Shows merit's messages through `handler`; what the CLI does, and what a library user may do."""
    logger = logging.getLogger(_ROOT)
    logger.addHandler(handler)
    logger.setLevel(level)
