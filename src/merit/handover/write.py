"""Writes one branch's folder for another trainer."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

import yaml

from merit.base.errors import printable
from merit.base.files import write_text
from merit.base.record import fingerprint
from merit.handover import axolotl, llamafactory, trl
from merit.handover.bundle import CONFIG, DATA, OUTPUT, Bundle, Handover
from merit.run.layout import RunDir, relative
from merit.train.spec import BranchSpec

TRAINERS: dict[str, ModuleType] = {"trl": trl, "axolotl": axolotl, "llamafactory": llamafactory}
MANIFEST = "handover.json"


def write_handover(run: RunDir, spec: BranchSpec, trainer: str, model: str) -> Path:
    """Writes configuration, data, README and manifest, the manifest last. Returns the folder.

    Args:
        model: θ0 as the trainer is to load it: a folder or a Hub id.

    Raises:
        InputError: a file of encoded examples is missing or damaged.
    """
    folder = run.handover(trainer, spec.method, spec.branch)
    module = TRAINERS[trainer]
    bundle = Bundle.of(run, spec, model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    module.write_data(bundle, folder)
    values = yaml.safe_dump(module.configuration(bundle), sort_keys=False, allow_unicode=True)
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
    write_text(folder / "README.md", _readme(run, manifest, module.COMMAND, bundle, folder))
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
