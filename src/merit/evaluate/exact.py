"""Whether an answer is right: by the source's own verifier, or by comparison with the reference."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from merit.base.errors import InputError

# Their scorers compare the grid that they read from the answer, a tuple of tuples, with the entry's, which JSON has
# turned into lists: every right answer would count as wrong.
_GRIDS = {"arc_agi", "rearc"}


def score_answer(answer: str, *, reference: str | None, verifier: str | None) -> float:
    """A score in 0..1. The verifier decides where there is one (reasoning_gym gives partial credit), else equality
    after Unicode normalisation, with white space collapsed and case kept.

    Raises:
        InputError: a verifier is asked for and reasoning_gym is not installed.
    """
    if verifier is not None:
        return _verify(answer.strip(), verifier)
    if reference is None:
        return 0.0
    return float(_normal(answer) == _normal(reference))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _verify(answer: str, verifier: str) -> float:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise InputError("scoring needs reasoning_gym: pip install 'merit-tuning[demo]'") from None
    stored = json.loads(verifier)
    score = get_score_answer_fn(stored["name"])
    entry = stored["entry"]
    if stored["name"] in _GRIDS:
        entry = entry | {"metadata": {key: _tuples(value) for key, value in entry["metadata"].items()}}
    try:
        value = float(score(answer, entry))
    except Exception:  # a verifier raises what it likes at an answer that it did not foresee: a wrong one
        return 0.0
    return min(1.0, max(0.0, value))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
