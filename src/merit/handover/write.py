"""`merit handover`: every branch of a method as a folder for another trainer."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import yaml

from merit.base.errors import InputError, printable
from merit.base.files import write_text
from merit.base.record import fingerprint
from merit.context import Method, RunContext
from merit.handover.bundle import CONFIG, DATA, MANIFEST, OUTPUT, Bundle, Handover, refuse_images
from merit.handover.trainers import TRAINERS
from merit.run.events import stage_events
from merit.run.guard import run_lock
from merit.run.layout import RunDir, relative
from merit.train.spec import BranchSpec
from merit.train.step import branch_specs, prepare_branch

_log = logging.getLogger(__name__)


def hand_over(context: RunContext, trainer: str, method: str) -> list[Path]:
    """Writes the folders of the branches that are not done yet; the run must be split.

    Raises:
        InputError: no such method, no partition yet, rounds, a branch has images, or another process works on the run.
    """
    chosen = find_method(context, method)
    if not chosen.dir.partition.is_file():
        raise InputError("this run is not split yet; `merit split` comes first", file=context.run.root)
    folders = []
    with run_lock(context.run), stage_events(context.run.events, f"handover {trainer}"):
        specs = branch_specs(context, chosen)
        refuse_images(context.run, specs)
        with context.progress.bar(f"handover to {trainer}", total=len(specs), unit="branch") as bar:
            for spec in specs:
                if prepare_branch(chosen.dir.branch(spec.branch), spec):
                    folders.append(_write(context.run, spec, trainer, _reference(context)))
                else:
                    _log.info("%s branch %d is done already", method, spec.branch)
                bar.update(spec.branch + 1)
    return folders


def find_method(context: RunContext, name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: the run has no such method, or it has no branches of its own, or trains them in rounds.
    """
    for method in context.methods:
        if method.name == name and method.source:
            raise InputError(f"{name!r} merges the branches of {method.source!r}; name that one", field="--method")
        if method.name == name and method.rounds > 1:
            said = "branches that are merged in rounds are trained by merit itself; set it to 1"
            raise InputError(said, field="train.rounds")
        if method.name == name:
            return method
    known = ", ".join(method.name for method in context.trained)
    raise InputError(f"no method {name!r} in this run; there are: {known}", field="--method")


def _reference(context: RunContext) -> str:
    """θ0 as another program loads it: its Hub id where it has one, else the folder on this machine."""
    path = context.config.model.path
    local = path.startswith("embedded:") or (context.base / path).exists()
    return str(context.model.path.resolve()) if local else path


def _write(run: RunDir, spec: BranchSpec, trainer: str, model: str) -> Path:
    """Writes configuration, data, README and manifest, the manifest last. Returns the folder.

    Args:
        model: θ0 as the trainer is to load it: a folder or a Hub id.

    Raises:
        InputError: a file of encoded examples is missing or damaged.
    """
    folder = run.handover(trainer, spec.method, spec.branch)
    to = TRAINERS[trainer]
    bundle = Bundle.of(run, spec, model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    to.write_data(bundle, folder)
    values = yaml.safe_dump(to.configuration(bundle), sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, values)
    manifest = Handover(
        trainer=trainer,
        method=spec.method,
        branch=spec.branch,
        fingerprint=fingerprint(spec),
        model=model,
        model_fingerprint=spec.model_fingerprint,
        examples=len(bundle.rows),
        supervised_tokens=bundle.supervised_tokens,
    )
    write_text(folder / "README.md", _readme(run, manifest, to.command, bundle, folder))
    manifest.save(folder / MANIFEST)
    return folder


def _readme(run: RunDir, manifest: Handover, command: str, bundle: Bundle, folder: Path) -> str:
    names = ", ".join(printable(item.name) for item in bundle.spec.data)
    method = f" --method {manifest.method}" if manifest.method != "merit" else ""
    place = shlex.quote(relative(run.root, Path.cwd()))  # people paste it into a shell
    batch = bundle.batching
    budget = f"{manifest.supervised_tokens:,} supervised tokens: {bundle.spec.train.epochs:g} epochs"
    budget += f", {bundle.steps:,} steps"
    return f"""# Branch {manifest.branch} of {manifest.method}

Fine-tune θ0 on this branch's {manifest.examples:,} examples ({names}), alone:

```
cd {shlex.quote(folder.name)}
{command}
```

| | |
| --- | --- |
| θ0 | `{printable(manifest.model)}`, fingerprint `{manifest.model_fingerprint}` |
| budget | {budget} |
| a step | {batch.micro} × {batch.accumulation} examples on one device; on N devices divide the accumulation by N |
| `{DATA}/` | token ids and labels (−100 carries no loss), rendered with θ0's chat template |
| `{OUTPUT}/` | where the trained model goes |

On another machine, set the model's path in `{CONFIG}`; everything else is in this folder. Every branch must start from
the same θ0, or the merge means nothing. Bring the folder back, and put the branch into the run:

```
merit adopt {place} {manifest.branch} {shlex.quote(relative(folder, Path.cwd()))}{method}
merit run {place}
```
"""
