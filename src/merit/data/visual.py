"""`visual:NAME`: generated questions about small pictures, for demonstrations and tests. No download, no licence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.row import Row
from merit.demo.visual_tasks import TASKS, VERSION, Made

PREFIX = "visual:"
DEFAULT_SIZE = 500


@dataclass(frozen=True)
class VisualSource:
    """One task. Rows are {question, answer, image}; row i of a seed is always the same.

    `talk` goes on asking about the same picture: {messages, image}. Cheaper to learn from: it is looked at once.
    """

    place: str
    task: str
    size: int
    seed: int
    talk: bool = False
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
        talk = config.options.get("talk", False)
        if unknown := sorted(set(config.options) - {"seed", "talk"}):
            raise InputError("unknown option; there are: seed, talk", field=f"{field}.options.{unknown[0]}")
        if type(seed) is not int or seed < 0:
            raise InputError(f"must be a whole number, not {seed!r}", field=f"{field}.options.seed")
        if not isinstance(talk, bool):
            raise InputError(f"must be true or false, not {talk!r}", field=f"{field}.options.talk")
        return cls(config.path, task, config.max_examples or DEFAULT_SIZE, seed, talk)

    def rows(self) -> Iterator[Row]:
        task = TASKS[self.task]
        for index in range(self.size):
            rng = np.random.default_rng([self.seed, index, len(self.task), *self.task.encode()])
            try:
                made = task.make(rng)
            except ImportError as error:
                message = f"needs {error.name}: pip install 'merit-tuning[vision]'"
                raise InputError(message, file=self.place) from None
            out = BytesIO()
            made.picture.save(out, "PNG")
            image = {"bytes": out.getvalue(), "path": f"{self.task}-{index}.png"}
            asked: dict[str, object] = {"question": made.question, "answer": made.answer}
            if self.talk:
                asked = {"messages": _turns(made, rng)}
            yield Row(index + 1, (index + 1) / self.size, {**asked, "image": image})

    def fingerprint(self) -> str:
        return "visual:" + json.dumps([VERSION, self.task, self.size, self.seed, self.talk])


def _turns(made: Made, rng: np.random.Generator) -> list[dict[str, str]]:
    """The task's own question comes first: what is said of the steps would answer it without a look at the picture."""
    asked = [(made.question, made.answer), *(made.more[at] for at in rng.permutation(len(made.more)))]
    return [
        {"role": role, "content": text}
        for turn in asked
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
