"""`visual:NAME`: generated questions about small pictures, for demonstrations and tests. No download, no licence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from merit.config.mixture import DatasetConfig
from merit.data.row import Row
from merit.data.visual_tasks import TASKS, VERSION
from merit.errors import InputError

PREFIX = "visual:"
DEFAULT_SIZE = 500


@dataclass(frozen=True)
class VisualSource:
    """One task. Rows are {question, answer, image}; row i of a seed is always the same."""

    place: str
    task: str
    size: int
    seed: int
    scores: bool = False

    @classmethod
    def open(cls, config: DatasetConfig, field: str) -> VisualSource:
        """Checks the task and options of the dataset at `field` of the configuration.

        Raises:
            InputError: an unknown task or option.
        """
        task = config.path.removeprefix(PREFIX)
        if task not in TASKS:
            near = difflib.get_close_matches(task, TASKS, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(TASKS)}"
            raise InputError(f"unknown task {task!r}{hint}", field=f"{field}.path")
        seed = config.options.get("seed", 0)
        if unknown := sorted(set(config.options) - {"seed"}):
            raise InputError("unknown option; there is: seed", field=f"{field}.options.{unknown[0]}")
        if type(seed) is not int or seed < 0:
            raise InputError(f"must be a whole number, not {seed!r}", field=f"{field}.options.seed")
        return cls(config.path, task, config.max_examples or DEFAULT_SIZE, seed)

    def rows(self) -> Iterator[Row]:
        task = TASKS[self.task]
        for index in range(self.size):
            rng = np.random.default_rng([self.seed, index, len(self.task), *self.task.encode()])
            try:
                picture, question, answer = task.make(rng)
            except ImportError as error:
                message = f"needs {error.name}: pip install 'merit-tuning[vision]'"
                raise InputError(message, file=self.place) from None
            out = BytesIO()
            picture.save(out, "PNG")
            image = {"bytes": out.getvalue(), "path": f"{self.task}-{index}.png"}
            yield Row(index + 1, (index + 1) / self.size, {"question": question, "answer": answer, "image": image})

    def fingerprint(self) -> str:
        return "visual:" + json.dumps([VERSION, self.task, self.size, self.seed])
