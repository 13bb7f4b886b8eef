"""Draws docs/pictures/*.svg: `python docs/draw_pictures.py [FOLDER]`.

What looks like a measurement in them is computed: arrows and cosines from the same vectors, the cut by merit's own
median, paths by gradient descent on a quadratic. One file serves light and dark pages: it follows `color-scheme`.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "pictures"
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #24292f; }
.small { font-size: 12px; fill: #57606a; } .cell { font-size: 12px; }
.strong { font-weight: 600; } .on { fill: #ffffff; }
.mid { text-anchor: middle; } .end { text-anchor: end; }
.box { fill: #f3f5f8; stroke: #c4cad2; } .line { stroke: #57606a; fill: none; stroke-width: 1.6; }
.faint { stroke: #c4cad2; fill: none; } .tip { fill: #57606a; stroke: none; }
.a { fill: #3d5bd9; } .b { fill: #d9622b; } .m { fill: #1f8a5b; } .j { fill: #8a4fbf; } .n { fill: #8c959f; }
.sa { stroke: #3d5bd9; } .sb { stroke: #d9622b; } .sm { stroke: #1f8a5b; } .sj { stroke: #8a4fbf; }
.path { fill: none; stroke-width: 2.4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e3e6ea; } .small { fill: #a9b1ba; } .on { fill: #10131a; }
  .box { fill: #2a2f3a; stroke: #4b5361; } .line { stroke: #a9b1ba; } .faint { stroke: #4b5361; }
  .tip { fill: #a9b1ba; }
  .a { fill: #8ea2ff; } .b { fill: #ff9a66; } .m { fill: #5fd39a; } .j { fill: #cf9cff; } .n { fill: #8c959f; }
  .sa { stroke: #8ea2ff; } .sb { stroke: #ff9a66; } .sm { stroke: #5fd39a; } .sj { stroke: #cf9cff; }
}
"""
Vector = NDArray[np.float64]


class Canvas:
    """An SVG in the making."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = (width, height)
        self.title = title
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str = "box", radius: float = 8) -> None:
        size = f'width="{width:.1f}" height="{height:.1f}" rx="{radius:g}"'
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{style}"/>')

    def dot(self, x: float, y: float, radius: float, style: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{style}"/>')

    def curve(self, points: Vector, style: str, closed: bool = False) -> None:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<{"polygon" if closed else "polyline"} points="{steps}" class="{style}"/>')

    def arrow(self, x0: float, y0: float, x1: float, y1: float, style: str = "line", tip: str = "tip") -> None:
        start, end = np.array([x0, y0]), np.array([x1, y1])
        along = (end - start) / np.linalg.norm(end - start)
        across = np.array([-along[1], along[0]])
        neck = end - 9 * along
        self.curve(np.array([start, neck]), style)
        self.curve(np.array([end, neck + 4.5 * across, neck - 4.5 * across]), tip, closed=True)

    def shade(self, x: float, y: float, size: float, style: str, strength: float) -> None:
        where = f'x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}"'
        self.parts.append(f'<rect {where} class="{style}" fill-opacity="{strength:.2f}"/>')

    def write(self, file: Path) -> None:
        width, height = self.size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        body = "\n".join([head, f"<title>{escape(self.title)}</title>", f"<style>{_STYLE}</style>", *self.parts])
        file.write_text(f"{body}\n</svg>\n", encoding="utf-8")


def flow() -> Canvas:
    canvas = Canvas(920, 250, "From a mixture of datasets to one merged model")
    names = ("algebra", "chat", "code", "grammar", "logic", "summaries")
    groups = "abaabb"
    canvas.text(70, 24, "mixture", "mid strong")
    for row, (name, group) in enumerate(zip(names, groups, strict=True)):
        canvas.box(15, 40 + 32 * row, 110, 25, group, 6)
        canvas.text(70, 57 + 32 * row, name, "mid on")
    canvas.arrow(132, 135, 172, 135)
    canvas.text(235, 24, "conflict", "mid strong")
    order = [i for group in "ab" for i, of in enumerate(groups) if of == group]
    for i, first in enumerate(order):
        for j, second in enumerate(order):
            same = groups[first] == groups[second]
            strength = 1.0 if i == j else 0.55 if same else 0.12
            canvas.shade(181 + 18 * j, 81 + 18 * i, 17, groups[first] if same else "n", strength)
    canvas.text(235, 212, "cosines of gradients at θ0", "mid small")
    canvas.arrow(285, 135, 318, 135)
    canvas.text(390, 24, "split", "mid strong")
    for y, group, members in ((50, "a", "algebra · code · grammar"), (160, "b", "chat · logic · summaries")):
        canvas.box(345, y, 90, 60, group)
        canvas.text(390, y + 35, "group 0" if group == "a" else "group 1", "mid on")
        canvas.text(390, y + 78, members, "mid small")
        canvas.arrow(442, y + 30, 497, y + 30, f"path s{group}", group)
        canvas.box(505, y, 120, 60)
        canvas.text(565, y + 27, "branch 0" if group == "a" else "branch 1", "mid")
        canvas.text(565, y + 46, "θ0 + its own data", "mid small")
    canvas.text(565, 24, "train", "mid strong")
    canvas.text(565, 140, "no traffic between them", "mid small")
    canvas.arrow(632, 80, 694, 122, "path sa", "a")
    canvas.arrow(632, 190, 694, 148, "path sb", "b")
    canvas.text(745, 24, "merge", "mid strong")
    canvas.box(702, 105, 86, 60, "m")
    canvas.text(745, 132, "average", "mid on")
    canvas.text(745, 151, "once", "mid on")
    canvas.text(745, 190, "weighted by tokens", "mid small")
    canvas.arrow(795, 135, 830, 135)
    canvas.text(872, 24, "evaluate", "mid strong")
    for row, length in enumerate((52, 64, 58, 40)):
        canvas.box(838, 96 + 21 * row, length, 13, "mnjn"[row], 3)
    canvas.text(872, 212, "against controls", "mid small")
    return canvas


def conflict() -> Canvas:
    canvas = Canvas(760, 300, "Gradients of five datasets at the shared init, and their cosines")
    names = ("algebra", "counting", "logic", "chat", "summaries")
    angles = np.radians([68, 52, 20, -38, -56])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for name, vector in zip(names, vectors, strict=True):
        group = "a" if vector[1] > 0 else "b"
        tip = np.array([95, 150]) + vector * [135, -135]
        canvas.arrow(95, 150, *tip, f"path s{group}", group)
        canvas.text(tip[0] + 8, tip[1] + 5, name)
    mean = vectors.mean(axis=0)
    canvas.arrow(95, 150, 95 + 135 * mean[0], 150 - 135 * mean[1], "line")
    canvas.text(101 + 135 * mean[0], 155 - 135 * mean[1], "what all share", "small")
    canvas.dot(95, 150, 5, "n")
    canvas.text(84, 154, "θ0", "end strong")
    canvas.text(170, 290, "mean gradient of each dataset", "mid small")
    cosines = vectors @ vectors.T
    for i, name in enumerate(names):
        canvas.text(500, 63 + 42 * i, name, "end")
        for j in range(len(names)):
            value = float(cosines[i, j])
            canvas.shade(510 + 42 * j, 37 + 42 * i, 40, "m" if value >= 0 else "b", 0.12 + 0.55 * abs(value))
            canvas.text(530 + 42 * j, 62 + 42 * i, f"{round(value, 1) + 0.0:.1f}".replace("-", "−"), "mid cell")
    canvas.text(615, 290, "their cosines: the similarity matrix", "mid small")
    return canvas


def split() -> Canvas:
    from merit.split.median import cut_group

    canvas = Canvas(760, 210, "Datasets along the axis of conflict, cut where the examples halve")
    names = ("summaries", "chat", "poems", "logic", "code", "counting", "algebra")
    scores = dict(zip(names, (-0.82, -0.6, -0.42, 0.05, 0.25, 0.55, 0.8), strict=True))
    examples = dict(zip(names, (900, 1600, 500, 700, 1500, 400, 1000), strict=True))
    low, high, _ = cut_group(scores, examples, axis=0)
    canvas.curve(np.array([[40, 110], [720, 110]]), "line")
    edge = (scores[low[-1]] + scores[high[0]]) / 2
    canvas.curve(np.array([[380 + 370 * edge, 25], [380 + 370 * edge, 165]]), "path sm")
    canvas.text(380 + 370 * edge, 18, "the cut", "mid strong")
    for name in names:
        x = 380 + 370 * scores[name]
        canvas.dot(x, 110, np.sqrt(examples[name]) * 0.75, "a" if name in low else "b")
        canvas.text(x, 160, name, "mid")
    for members, x, title in ((low, 215, "group 0"), (high, 580, "group 1")):
        canvas.text(x, 196, f"{title}: {sum(examples[n] for n in members):,} examples", "mid small")
    return canvas


def basin() -> Canvas:
    canvas = Canvas(760, 340, "Two branches in one basin, their average, and joint training")
    hessian = np.array([[1.0, 0.35], [0.35, 2.2]])
    optima = {"a": np.array([2.6, 1.15]), "b": np.array([1.9, -1.45])}
    centre = (optima["a"] + optima["b"]) / 2

    def place(points: Vector) -> Vector:
        return np.atleast_2d(points) * [185, -92] + [110, 165]

    turns = np.linspace(0, 2 * np.pi, 90)
    axes = np.linalg.inv(np.linalg.cholesky(hessian)).T
    for radius in (0.35, 0.75, 1.15, 1.55):
        ring = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1) @ axes.T
        canvas.curve(place(ring), "faint", closed=True)

    def descend(optimum: Vector, steps: int) -> Vector:
        path = [np.zeros(2)]
        for _ in range(steps):
            path.append(path[-1] - 0.1 * hessian @ (path[-1] - optimum))
        return np.array(path)

    ends = {}
    for name, optimum in optima.items():
        path = descend(optimum, 9)
        ends[name] = path[-1]
        canvas.curve(place(path), f"path s{name}")
    joint = descend(centre, 18)
    canvas.curve(place(joint), "path sj")
    canvas.curve(place(np.array([ends["a"], ends["b"]])), "line")
    merge = (ends["a"] + ends["b"]) / 2
    marks = (
        (np.zeros(2), "n", "θ0", (-14, 5, "end strong")),
        (ends["a"], "a", "branch 0", (0, -14, "mid")),
        (ends["b"], "b", "branch 1", (0, 26, "mid")),
        (joint[-1], "j", "joint training", (12, 5, "")),
        (merge, "m", "merge", (-12, 22, "end strong")),
    )
    for where, style, label, (right, down, anchor) in marks:
        x, y = place(where)[0]
        canvas.dot(x, y, 6, style)
        canvas.text(x + right, y + down, label, anchor)
    canvas.text(380, 332, "loss of the whole mixture; each branch took half of joint training's steps", "mid small")
    return canvas


def traffic() -> Canvas:
    canvas = Canvas(760, 230, "What crosses the network: joint training in every step, branches once")
    for top, title in ((40, "joint training on two machines"), (140, "two branches")):
        canvas.text(20, top - 12, title, "strong")
        for row in range(2):
            canvas.text(20, top + 16 + 34 * row, f"machine {row}", "small")
            canvas.box(95, top + 2 + 34 * row, 500, 20, "ab"[row], 4)
    for step in range(20):
        x = 107.5 + 25 * step
        canvas.curve(np.array([[x, 62], [x, 76]]), "path sj")
    canvas.text(610, 72, "gradients, every step", "small")
    canvas.arrow(598, 152, 640, 164, "path sm", "m")
    canvas.arrow(598, 186, 640, 174, "path sm", "m")
    canvas.dot(652, 169, 8, "m")
    canvas.text(668, 174, "weights, once", "small")
    canvas.text(345, 222, "time →", "mid small")
    return canvas


def main(folder: Path) -> None:
    for draw in (flow, conflict, split, basin, traffic):
        draw().write(folder / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
