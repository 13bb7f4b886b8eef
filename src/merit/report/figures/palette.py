"""Colours, as names of CSS variables, and what tells things apart without colour: symbols and dashes."""

from __future__ import annotations

from collections.abc import Sequence

_GROUPS = 8
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def group_colour(k: int) -> str:
    """The colour of group k. With more than eight groups, colours come again with other symbols."""
    return f"--group-{k % _GROUPS}"


def group_symbol(k: int) -> str:
    """The marker of group k."""
    return _SYMBOLS[(k + k // _GROUPS) % len(_SYMBOLS)]


def method_colour(name: str, others: Sequence[str]) -> str:
    """θ0 is grey, the main method has the accent, the baselines a colour each."""
    if name == "base":
        return "--muted"
    if name == "merit":
        return "--accent"
    return f"--method-{others.index(name) % 5}" if name in others else "--muted"


def method_symbol(name: str, others: Sequence[str]) -> str:
    """The marker of a method."""
    if name == "base":
        return "x-thin-open"
    return "star" if name == "merit" else _SYMBOLS[(others.index(name) if name in others else 0) % len(_SYMBOLS)]


def dash(index: int) -> str:
    """A line style."""
    return _DASHES[index % len(_DASHES)]
