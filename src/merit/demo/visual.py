"""`visual:NAME`: generated questions about small pictures, for demonstrations and tests. No download, no licence.

Digits and photographs are real images that come with scikit-learn; the rest is drawn with Pillow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np

from merit.base.errors import InputError, did_you_mean
from merit.config.sections import GENERATED, DatasetConfig
from merit.data.example import Row

PREFIX = "visual:"


@dataclass(frozen=True)
class VisualSource:
    """One task. Rows are {question, answer, image}; row i of a seed is always the same.

    `talk` asks more about the same picture: {messages, image}. It costs less to learn several answers from one picture.
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
            hint = did_you_mean(task, TASKS, otherwise=f"; known: {', '.join(TASKS)}")
            raise InputError(f"unknown task {task!r}{hint}", field=f"{field}.path")
        seed = config.options.get("seed", 0)
        talk = config.options.get("talk", False)
        if unknown := sorted(set(config.options) - {"seed", "talk"}):
            raise InputError("unknown option; there are: seed, talk", field=f"{field}.options.{unknown[0]}")
        if type(seed) is not int or seed < 0:
            raise InputError(f"must be a whole number, not {seed!r}", field=f"{field}.options.seed")
        if not isinstance(talk, bool):
            raise InputError(f"must be true or false, not {talk!r}", field=f"{field}.options.talk")
        return cls(config.path, task, config.max_examples or GENERATED, seed, talk)

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
    """The task's own question comes first: answers about its steps would give it away."""
    asked = [(made.question, made.answer), *(made.more[at] for at in rng.permutation(len(made.more)))]
    return [
        {"role": role, "content": text}
        for turn in asked
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


VERSION = 2  # raise it when any task draws or asks something else
SIDE = 48  # pixels
Rng = np.random.Generator
Asked = tuple[str, str]  # a question and its answer

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 180),
    "orange": (240, 140, 40),
    "black": (20, 20, 20),
    "grey": (140, 140, 140),
}
WORDS = ("cat", "dog", "sun", "map", "ten", "fox", "ice", "jam", "owl", "key")
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Made:
    """A picture, a question and its answer, and further questions: steps toward the answer, or other things to see."""

    picture: Any
    question: str
    answer: str
    more: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Task:
    """`chance` is the accuracy of always giving the most frequent answer."""

    make: Callable[[Rng], Made]
    chance: float


def _sheet(rng: Rng) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    light = tuple(int(value) for value in rng.integers(225, 256, 3))
    picture = Image.new("RGB", (SIDE, SIDE), light)
    return picture, ImageDraw.Draw(picture)


def _pick(rng: Rng, items: Any) -> Any:
    return list(items)[int(rng.integers(len(items)))]


def _colour_of(name: str) -> Asked:
    return "What colour is the shape?", name


def _shape_of(name: str) -> Asked:
    return "Which shape is this?", name


def _sides(left: str, right: str) -> tuple[Asked, Asked]:
    return ("What is on the left?", left), ("What is on the right?", right)


def _draw(pen: Any, shape: str, x: Any, y: Any, radius: Any, colour: Any) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        third = radius / 3
        pen.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
        pen.rectangle((x - third, y - radius, x + third, y + radius), fill=colour)


@cache
def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def _digit(rng: Rng, size: int) -> tuple[Any, int]:
    """A handwritten digit, dark on light, and which it is."""
    from PIL import Image

    images, labels = _digits()
    index = int(rng.integers(len(labels)))
    grey = (255 - images[index] * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR).convert("RGB"), int(labels[index])


def digit(rng: Rng) -> Made:
    """A handwritten digit."""
    picture, _ = _sheet(rng)
    found, value = _digit(rng, 36)
    picture.paste(found, tuple(int(at) for at in rng.integers(5, 8, 2)))
    return Made(picture, "Which digit is this?", str(value))


def compare(rng: Rng) -> Made:
    """Two handwritten digits side by side."""
    picture, _ = _sheet(rng)
    left, a = _digit(rng, 22)
    right, b = _digit(rng, 22)
    while a == b:
        right, b = _digit(rng, 22)
    picture.paste(left, (1, 13))
    picture.paste(right, (25, 13))
    question = "Which digit is larger, the left or the right one?"
    return Made(picture, question, "left" if a > b else "right", _sides(str(a), str(b)))


def colour(rng: Rng) -> Made:
    """One shape."""
    picture, pen = _sheet(rng)
    name = _pick(rng, COLOURS)
    radius = rng.integers(7, 14)
    x, y = rng.integers(radius + 1, SIDE - radius - 1, 2)
    form = _pick(rng, SHAPES)
    _draw(pen, form, x, y, radius, COLOURS[name])
    return Made(picture, *_colour_of(name), more=(_shape_of(form),))


def shape(rng: Rng) -> Made:
    """One shape, another question."""
    picture, pen = _sheet(rng)
    name = _pick(rng, SHAPES)
    radius = rng.integers(10, 17)
    x, y = rng.integers(22, 27, 2)
    dark = _pick(rng, COLOURS)
    _draw(pen, name, x, y, radius, COLOURS[dark])
    return Made(picture, *_shape_of(name), more=(_colour_of(dark),))


def count(rng: Rng) -> Made:
    """One to five dots, none touching another."""
    picture, pen = _sheet(rng)
    number = int(rng.integers(1, 6))
    cells = rng.permutation(9)[:number]
    dark = _pick(rng, COLOURS)
    for cell in cells:
        x, y = 8 + 16 * (cell % 3) + rng.integers(-1, 2), 8 + 16 * (cell // 3) + rng.integers(-1, 2)
        _draw(pen, "circle", x, y, 5, COLOURS[dark])
    return Made(picture, "How many dots are there?", str(number), (("What colour are the dots?", dark),))


def position(rng: Rng) -> Made:
    """A shape in one quarter."""
    picture, pen = _sheet(rng)
    right, low = (int(value) for value in rng.integers(0, 2, 2))
    x, y = 12 + 24 * right + rng.integers(-4, 5), 12 + 24 * low + rng.integers(-4, 5)
    form, radius, dark = _pick(rng, SHAPES), rng.integers(4, 8), _pick(rng, COLOURS)
    _draw(pen, form, x, y, radius, COLOURS[dark])
    corner = f"{('top', 'bottom')[low]} {('left', 'right')[right]}"
    return Made(picture, "In which corner is the shape?", corner, (_colour_of(dark), _shape_of(form)))


def same(rng: Rng) -> Made:
    """Two shapes of one colour."""
    picture, pen = _sheet(rng)
    alike = bool(rng.integers(2))
    first = _pick(rng, SHAPES)
    second = first if alike else _pick(rng, [name for name in SHAPES if name != first])
    dark = _pick(rng, COLOURS)
    for name, x in ((first, 12), (second, 36)):
        _draw(pen, name, x, 24 + rng.integers(-1, 2), 10, COLOURS[dark])
    return Made(picture, "Are the two shapes the same?", "yes" if alike else "no", _sides(first, second))


def word(rng: Rng) -> Made:
    """A rendered word."""
    from PIL import ImageFont

    picture, pen = _sheet(rng)
    text = _pick(rng, WORDS)
    at = (int(rng.integers(5, 8)), int(rng.integers(12, 15)))
    ink = _pick(rng, ("red", "blue", "black"))
    pen.text(at, text, fill=COLOURS[ink], font=ImageFont.load_default(18))
    return Made(picture, "Read the word.", text, (("What colour is the word?", ink),))


def chart(rng: Rng) -> Made:
    """Three bars of height 1 to 5, one of them red."""
    picture, pen = _sheet(rng)
    heights = rng.integers(1, 6, 3)
    red = int(rng.integers(3))
    for index, height in enumerate(heights):
        left = 5 + 14 * index
        fill = COLOURS["red"] if index == red else COLOURS["grey"]
        pen.rectangle((left, 44 - 8 * int(height), left + 10, 44), fill=fill)
    for level in range(1, 6):
        pen.line((1, 44 - 8 * level, 3, 44 - 8 * level), fill=(0, 0, 0))
    where = ("Where is the red bar?", ("left", "middle", "right")[red])
    return Made(picture, "What is the value of the red bar?", str(int(heights[red])), (where,))


def bigger(rng: Rng) -> Made:
    """A red and a blue square."""
    picture, pen = _sheet(rng)
    sizes = rng.permutation([4, 6, 8, 10])[:2]
    order = rng.permutation(2)
    for place, which in enumerate(order):
        _draw(pen, "square", 12 + 24 * place, 24 + rng.integers(-8, 9), sizes[which], COLOURS[("red", "blue")[which]])
    question = "Which square is bigger, the red or the blue one?"
    names = [("red", "blue")[which] for which in order]
    return Made(picture, question, "red" if sizes[0] > sizes[1] else "blue", _sides(*names))


@cache
def _photographs() -> list[Any]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)  # a temple in China, a flower


def photo(rng: Rng) -> Made:
    """A piece of a photograph."""
    from PIL import Image

    which = int(rng.integers(2))
    whole = _photographs()[which]
    side = int(rng.integers(96, 240))
    y, x = int(rng.integers(whole.shape[0] - side)), int(rng.integers(whole.shape[1] - side))
    piece = Image.fromarray(whole[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return Made(piece, "Is this the temple or the flower?", ("temple", "flower")[which])


TASKS: dict[str, Task] = {
    "digit": Task(digit, 0.10),
    "compare": Task(compare, 0.5),
    "colour": Task(colour, 1 / 8),
    "shape": Task(shape, 0.25),
    "count": Task(count, 0.2),
    "position": Task(position, 0.25),
    "same": Task(same, 0.5),
    "word": Task(word, 0.1),
    "chart": Task(chart, 0.2),
    "bigger": Task(bigger, 0.5),
    "photo": Task(photo, 0.5),
}
