"""The checks of `merit diagnose`, by name: apart from their section, for `merit --help` needs no pydantic."""

from __future__ import annotations

from typing import Literal, get_args

# Displacement comes first: it is cheap, and notices branches that have not moved before anything long begins.
CheckName = Literal["displacement", "lmc", "gain", "perturbation", "curvature", "calibration", "landscape"]
CHECK_NAMES: tuple[CheckName, ...] = get_args(CheckName)
