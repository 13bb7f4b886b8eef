"""The driver's side of a store: what jobs need goes up, what they made comes down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import inside, is_own
from merit.base.program import merit_command
from merit.base.record import fingerprint
from merit.context import Method, RunContext
from merit.jobs.job import Job
from merit.jobs.store import Store
from merit.run.layout import BranchDir, relative
from merit.train.remote_job import THETA0, fetch_result
from merit.train.spec import BranchSpec

_LOOK_SECONDS = 5.0


class Staging:
    """A run and its mirror in the store."""

    def __init__(self, context: RunContext) -> None:
        """Raises InputError: the store cannot be opened."""
        self.context = context
        self.store = Store(store_url(context))
        self._looked: dict[str, float] = {}

    def send(self, branches: Sequence[BranchDir]) -> None:
        """Puts specs, data and, where it has no Hub id, θ0. What another plan left of a branch is removed.

        Raises:
            StageError: the store cannot be reached.
        """
        run = self.context.run
        there = set(self.store.names("data")) | set(self.store.names(THETA0))
        with self.context.progress.bar("stage out", total=len(branches), unit="branch") as bar:
            for index, branch in enumerate(branches):
                spec = BranchSpec.load(branch.spec)
                name = relative(branch.spec, run.root)
                incoming = branch.root / "spec.store"
                known = None
                if self.store.get(name, incoming):
                    with contextlib.suppress(InputError):
                        known = fingerprint(BranchSpec.load(incoming))
                    incoming.unlink()
                if known != fingerprint(spec):
                    self.store.remove(relative(branch.root, run.root))
                for item in spec.data:
                    mark = f"{item.data}.{item.fingerprint}"  # an empty file that says which content is there
                    if mark not in there:
                        self.store.put(inside(run.root, item.data), item.data)
                        self._put_mark(mark)
                        there.add(mark)
                if self.model_is_local:
                    self._send_model(there)
                self.store.put(branch.spec, name)
                bar.update(index + 1)

    def fetch(self, branch: BranchDir) -> bool:
        """Brings a branch that is done; False if it is not.

        Raises:
            StageError: its files arrive damaged, or the store cannot be reached.
        """
        mark = fingerprint(BranchSpec.load(branch.spec))
        return fetch_result(self.store, self.context.run, branch, mark)

    def look(self, job: Job) -> None:
        """Brings a job's progress, now and then."""
        now = time.monotonic()
        if now - self._looked.get(job.name, 0.0) >= _LOOK_SECONDS:
            self._looked[job.name] = now
            with contextlib.suppress(StageError):
                self.store.get(relative(job.progress, self.context.run.root), job.progress)

    @property
    def model_is_local(self) -> bool:
        """Whether other machines cannot fetch θ0 from the Hub themselves."""
        path = self.context.config.model.path
        return path.startswith("embedded:") or (self.context.base / path).exists()

    def _send_model(self, there: set[str]) -> None:
        model = self.context.model
        below = f"{THETA0}/{model.fingerprint}"
        for file in sorted(file for file in model.path.rglob("*") if is_own(file, model.path)):
            name = f"{below}/{file.relative_to(model.path).as_posix()}"
            if name not in there:
                self.store.put(file, name)
                there.add(name)

    def _put_mark(self, name: str) -> None:
        empty = self.context.run.engine / "empty"
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
        self.store.put(empty, name)


def store_url(context: RunContext) -> str:
    """The run's mirror: a folder of the run's name below `launch.store`."""
    base = context.config.launch.store or ""
    return f"{base.rstrip('/')}/{Path(context.run.root).resolve().name}"


def branch_job(context: RunContext, method: Method, branch: BranchDir, spec: BranchSpec) -> Job:
    """`merit train RUN --branch k --method NAME`, with the devices that the configuration gives a branch."""
    launch = context.config.launch
    root = store_url(context) if launch.store is not None else str(context.run.root.resolve())
    command = merit_command("train", root, "--branch", str(spec.branch), "--method", method.name)
    if launch.processes > 1:
        command += ["--processes", str(launch.processes)]
    if launch.accelerate is not None:
        command += ["--accelerate", launch.accelerate]
    return Job(
        name=f"{method.name} branch {spec.branch}",
        command=tuple(command),
        done=branch.done,
        progress=branch.progress,
        output=branch.output,
        weight=spec.planned_tokens,
        env=launch.env,
        record=branch.job,
    )
