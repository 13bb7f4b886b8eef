"""Entries of a reasoning_gym family that are the same in every process, made by one of their own.

Some families draw from a set of strings, whose order changes with Python's hash seed, or from the global generators of
Python and numpy. In this process that depends on how it was started and on what ran before; in one of its own it is
fixed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from merit.errors import InputError
from merit.run.program import PYTHON

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
        [*PYTHON, "-m", "merit.data.gym_entries"],
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
