"""A branch's training log: one JSON object a line, read with every line that is whole and no other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.run.record import whole


@dataclass(frozen=True)
class LogLine:
    """One logged step."""

    step: int
    loss: float
    supervised_tokens: int | None
    seconds: float | None


def read_log(path: Path) -> list[LogLine]:
    """The steps that have a finite loss, in order; a kill may have torn the last line, a resume repeated some."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines: dict[int, LogLine] = {}
    for raw in text.splitlines():
        try:
            value = json.loads(raw, parse_int=whole)
        except (ValueError, RecursionError):
            continue
        line = _line(value)
        if line is not None:
            lines[line.step] = line
    return [lines[step] for step in sorted(lines)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """A running mean over up to `window` values around each. It narrows at the start, where losses fall steeply."""
    half = max(0, window // 2)
    result = []
    for i in range(len(values)):
        part = values[i - min(half, i) : i + min(half, i) + 1]
        result.append(sum(part) / len(part))
    return result


def _line(value: Any) -> LogLine | None:
    if not isinstance(value, dict):
        return None
    step, loss = _number(value.get("step")), _number(value.get("loss"))
    if step is None or loss is None:
        return None
    tokens = _number(value.get("supervised_tokens"))
    return LogLine(int(step), loss, None if tokens is None else int(tokens), _number(value.get("seconds")))


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
