"""Pilots of two repairs on the branch side, at 1.1M parameters: do they make a better merge at the same tokens?

    OMP_NUM_THREADS=1 python studies/small/pilots/pilots.py OUT [--seeds 1 2 3 4 5] [--cells joint …]
    python studies/small/pilots/tables.py OUT

θ0, families and recipe are those of ../study.yaml. A cell that OUT holds is not trained again. The second command
prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from repairs import Guard, Noise, anchored, other_grams

import merit.train.branch
from merit.base.files import write_text
from merit.config.study import MethodConfig
from merit.merge.average import merge_checkpoints
from merit.study.job import Job
from merit.study.measure import Part, measure
from merit.study.spec import Study
from merit.study.warmup import make_init
from merit.train.spec import BranchSpec

SCALES = (0.3, 0.5, 0.7, 1.0)  # points θ0 + β δ among which validation chooses
CELLS = ["joint", "merit", "anchor 0.05", "guard 0.1", "guard 1", "guard 0.01", "anchor 0.15"]
CELLS += ["guard 0.001", "isotropic 0.1", "pull 20", "noise 0.05", "anchor 0.75"]


def pilot(out: Path) -> Study:
    """The small study with 60 training rows a family, one budget and the groups of MERIT 2D."""
    study = Study.open(Path(__file__).parents[1] / "study.yaml", output=out)
    rows = {name: item.model_copy(update={"max_examples": 80}) for name, item in study.config.mixture.items()}
    changes = {
        "mixture": rows,
        "held_out_fraction": 0.25,
        "budgets": {"all": 1.0},
        "faces": study.config.faces.model_copy(update={"validation": 6, "test": 12}),
        "methods": {"joint": MethodConfig(splitter="single"), "merit": MethodConfig(splitter="pca", axes=2)},
    }
    return replace(study, config=study.config.model_copy(update=changes))


class Seed:
    """One seed: its branches with a repair, merged and measured."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.root = study, study.dir.root
        self.job = Job(study, seed, "all")
        self.grams: list[dict[str, Any]] = []

    def run(self, cell: str) -> dict[str, Any]:
        """Trains the cell, and scores the merges of its branches by tokens and by actmat."""
        kind, _, value = cell.partition(" ")
        method = self.study.config.methods["joint" if kind == "joint" else "merit"]
        specs = self.changed(self.job.data.specs(method, 1.0), kind, float(value or 0))
        started = time.process_time()
        cells = []
        for k, spec in enumerate(specs):
            with added(lambda model, k=k: self.callbacks(kind, float(value or 0), k, model)):
                cells.append(self.job.train(spec.model_copy(update={"method": cell.replace(" ", "-")})))
        found: dict[str, Any] = {"seconds": round(time.process_time() - started, 1), "merges": {}}
        folders, tokens = [c.branch.checkpoint for c in cells], [c.result.supervised_tokens for c in cells]
        found |= {"tokens": tokens, "steps": [c.result.steps for c in cells]}
        steps = {"tokens": self.job.ray.mean(folders, tokens)[0]}
        if len(cells) > 1:
            out = self.job.folder / "merged"
            shutil.rmtree(out, ignore_errors=True)
            theta0 = self.study.theta0.path
            merge_checkpoints(folders, tokens, {1.0: out}, base=theta0, rule="actmat", dtype="float32")
            steps["actmat"] = self.job.ray.step(out)
        for name, step in steps.items():
            found["merges"][name] = self.measured(step)
        for c in cells:
            shutil.rmtree(c.branch.root)
        return found

    def changed(self, specs: list[BranchSpec], kind: str, value: float) -> list[BranchSpec]:
        if kind == "anchor":
            folder = self.job.folder / "anchored"
            folder.mkdir(parents=True, exist_ok=True)
            return anchored(specs, self.root, folder, value)
        if kind == "pull":
            recipe = specs[0].train.model_copy(update={"pull": value})
            return [spec.model_copy(update={"train": recipe}) for spec in specs]
        if kind in ("guard", "isotropic") and not self.grams:
            self.grams = other_grams(self.job.ray.reset(), specs, self.root)
        return specs

    def callbacks(self, kind: str, value: float, k: int, model: Any) -> list[Any]:
        if kind in ("guard", "isotropic"):
            return [Guard(model, value, self.grams[k], kind == "isotropic")]
        return [Noise(value, k)] if kind == "noise" else []

    def measured(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Test scores at scale 1, and at the scale that validation chose."""

        def scores(scale: float, parts: Sequence[Part]) -> Any:
            return measure(self.job.ray.set(step, scale), parts, batch_tokens=8192, precision="fp32")

        averages = {scale: scores(scale, self.job.examples.validation).average for scale in SCALES}
        best = min(SCALES, key=lambda scale: averages[scale])
        test = {scale: scores(scale, self.job.examples.test).model_dump(mode="json") for scale in {1.0, best}}
        return {"plain": test[1.0], "chosen": test[best], "scale": best}


class added:  # noqa: N801 — a context manager
    """Inside, branches are trained with further callbacks, made of the model before it is trained."""

    def __init__(self, make: Any) -> None:
        self.make, self.before = make, merit.train.branch._callbacks

    def __enter__(self) -> None:
        merit.train.branch._callbacks = lambda branch, model: [*self.before(branch, model), *self.make(model)]

    def __exit__(self, *error: object) -> None:
        merit.train.branch._callbacks = self.before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    options = parser.parse_args()
    study = pilot(options.out)
    make_init(study)
    folder = study.dir.root / "pilots"
    folder.mkdir(exist_ok=True)
    for number in options.seeds:
        seed = None
        for cell in options.cells:
            path = folder / f"{number}-{cell}.json"
            if not path.exists():
                seed = seed or Seed(study, number)
                write_text(path, json.dumps(seed.run(cell)))
                sys.stderr.write(f"seed {number}, {cell}\n")


if __name__ == "__main__":
    main()
