"""reasoning_gym families as sources: generated questions, with answers and a scorer."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from merit.base.errors import InputError, did_you_mean
from merit.base.machine import PYTHON
from merit.config.sections import GENERATED, DatasetConfig
from merit.data.example import Row

PREFIX = "reasoning_gym:"
_KEEP = 5_000  # rows kept after generation, because a build reads twice and generating costs more than reading
# What the generators raise on wrong options: they validate with assert.
_REFUSALS = (AssertionError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class GymSource:
    """One family. Rows are {question, answer, verifier}; `answer` is None where only the scorer knows one.

    `verifier` is JSON with the family's `name` and the whole `entry`: what `reasoning_gym.get_score_answer_fn(name)`
    and the function it returns take.
    """

    place: str
    family: str
    size: int
    seed: int
    options: dict[str, Any]
    scores: bool = True
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, config: DatasetConfig, field: str) -> GymSource:
        """Checks family and options of the dataset at `field` of the configuration.

        Raises:
            InputError: not installed, unknown family or option (with the nearest known one), a refused value.
        """
        registry = _registry()
        family = config.path.removeprefix(PREFIX)
        if family not in registry:
            raise InputError(f"unknown family {family!r}{_nearest(family, registry)}", field=f"{field}.path")
        options = dict(config.options)
        at = f"{field}.options"
        seed = options.pop("seed", 0)
        if type(seed) is not int:
            raise InputError(f"must be a whole number, not {seed!r}", field=f"{at}.seed")
        if "size" in options:
            raise InputError("set `max_examples` instead", field=f"{at}.size")
        known = {item.name for item in dataclasses.fields(registry[family][1])} - {"seed", "size"}
        for key in options:
            if key not in known:
                raise InputError(f"unknown option{_nearest(key, known)}", field=f"{at}.{key}")
        source = cls(config.path, family, config.max_examples or GENERATED, seed, options)
        try:
            _ = source._dataset
        except _REFUSALS as error:
            raise InputError(f"the generator refuses them: {error}", field=at) from error
        return source

    def rows(self) -> Iterator[Row]:
        for index in range(self.size):
            yield Row(index + 1, (index + 1) / self.size, self._row(index))

    def fingerprint(self) -> str:
        recipe = [self.family, self.size, self.seed, self.options, version("reasoning-gym")]
        if self.family in UNSETTLED:
            recipe.append("settled")  # earlier versions of merit made other entries from the same recipe
        return "gym:" + json.dumps(recipe, sort_keys=True, default=str)

    # Frozen dataclasses may cache: the instance dict is written past __setattr__.
    @cached_property
    def _dataset(self) -> Any:
        import reasoning_gym

        return reasoning_gym.create_dataset(self.family, seed=self.seed, size=self.size, **self.options)

    @cached_property
    def _entries(self) -> Any:
        """The entries, by index."""
        if self.family not in UNSETTLED:
            return self._dataset
        return settled_entries(self.family, self.size, self.seed, self.options)

    def _row(self, index: int) -> dict[str, Any]:
        if index < len(self._rows):
            return self._rows[index]
        try:
            entry = self._entries[index]
        except _REFUSALS as error:
            raise InputError(f"the generator failed: {error}", file=self.place, line=index + 1) from error
        row = {
            "question": entry["question"],
            "answer": entry["answer"],
            "verifier": json.dumps({"name": self.family, "entry": entry}, ensure_ascii=True, default=str),
        }
        if index == len(self._rows) and index < _KEEP:
            self._rows.append(row)
        return row


def _registry() -> dict[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        if error.name != "reasoning_gym":  # it is installed, but lacks a package that it needs
            raise InputError(f"reasoning_gym cannot be imported: {error}") from None
        raise InputError("reasoning_gym is not installed: pip install 'merit-tuning[demo]'") from None
    registry: dict[str, Any] = DATASETS
    return registry


def _nearest(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known, otherwise=f"; known: {', '.join(sorted(known)[:12])}", cutoff=0.5)


# The families of reasoning_gym 0.1.25 whose first 60 entries differed between two processes (8 entries of eight slow
# ones were compared). The rest are quicker made in place.
UNSETTLED = frozenset(
    {
        "codeio",
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)


def settled_entries(family: str, size: int, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All entries of a family, as JSON keeps them.

    Raises:
        InputError: the generator fails.
    """
    recipe = {"name": family, "size": size, "seed": seed, **options}
    done = subprocess.run(
        [*PYTHON, "-m", "merit.data.gym"],
        input=json.dumps(recipe, default=str),
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = said[-1] if said else f"exit code {done.returncode}"
        raise InputError(f"the generator failed: {why}", file=f"reasoning_gym:{family}")
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    return entries


def main() -> None:
    """The process: a recipe on stdin, its entries on stdout."""
    import reasoning_gym

    recipe = json.load(sys.stdin)
    random.seed(recipe["seed"])
    np.random.seed(recipe["seed"] % 2**32)
    dataset = reasoning_gym.create_dataset(**recipe)
    json.dump([dataset[index] for index in range(recipe["size"])], sys.stdout, default=str)


if __name__ == "__main__":
    main()
