"""Branch jobs on machines that do not see the run directory: what the driver and the job send through the store.

The store mirrors the run directory. A file that is uploaded last says that what it belongs to is whole: a checkpoint's
marker, the branch's DONE. A job that starts on another machine resumes from the newest whole checkpoint in the store.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from merit.base.errors import InputError, StageError
from merit.base.files import disk_errors, inside, is_own, is_url
from merit.base.kept import damaged, kept
from merit.base.locks import claim
from merit.base.machine import merit_command
from merit.base.record import fingerprint
from merit.context import RunContext
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent, job_lock
from merit.jobs.store import Store
from merit.run.layout import BranchDir, RunDir, relative
from merit.train.checkpoints import KEPT, step_of
from merit.train.spec import MARKER, BranchResult, BranchSpec

_SYNC_SECONDS = 5.0
THETA0 = "theta0"
_LOOK_SECONDS = 5.0


def run_remote_branch_job(
    url: str, method: str, k: int, options: Sequence[str], number: int | None = None
) -> BranchResult:
    """Trains branch `k` of the run that the store at `url` mirrors.

    Args:
        options: further arguments for `merit train`.
        number: a round before the last; default: the last.

    Raises:
        InputError: the store holds no such branch.
        StageError: the store cannot be reached; or training failed.
    """
    die_with_parent()
    store = Store(url)
    run = RunDir(scratch_folder(url))
    home = run.method(method)
    branch = (home if number is None else home.round(number)).branch(k)
    with job_lock(branch.root / "remote.lock"):
        spec = _stage_in(store, run, branch, method, k)
        command = merit_command("train", str(run.root), "--branch", str(k), "--method", method)
        command += [] if number is None else ["--round", str(number)]
        if (run.root / THETA0).is_dir():
            command += ["--model", str(run.root / THETA0 / spec.model_fingerprint)]
        out = _StageOut(store, run, branch)
        if spec.round > 1:  # what the round begins with is there, as the end of the round before
            out.leave_out(run.method(method).round(spec.round - 1).branch(k))
        env = os.environ | {"MERIT_PARENT": str(os.getpid())}
        process = subprocess.Popen([*command, *options], env=env)
        code: int | None = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_SYNC_SECONDS)
            out.small_files()
            out.checkpoints()
        if not branch.done.is_file():
            if code == InputError.exit_code:
                raise InputError("training met bad input; see its message above", file=branch.root)
            raise StageError(f"training ended with exit code {code}")
        result = BranchResult.load(branch.done)
        out.result(result, last=spec.is_last)
        if spec.round > 1:
            before = run.method(method).round(spec.round - 1).branch(k)
            store.remove(relative(before.training_state, run.root))
    shutil.rmtree(branch.root, ignore_errors=True)
    return result


def scratch_folder(url: str) -> Path:
    """Where this machine keeps its files of a run: below $MERIT_SCRATCH, or in the temporary folder.

    Raises:
        InputError: the folder belongs to another user, or cannot be made.
    """
    import tempfile

    home = Path(os.environ.get("MERIT_SCRATCH") or tempfile.gettempdir()) / f"merit-{os.getuid()}"
    with disk_errors(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():  # anyone can make one in the temporary folder
            raise InputError("belongs to another user; set $MERIT_SCRATCH to a folder of your own", file=home)
    # The last part is the run's name, by which trackers group its branches.
    return home / fingerprint(url) / PurePosixPath(url).name


def _stage_in(store: Store, run: RunDir, branch: BranchDir, method: str, k: int) -> BranchSpec:
    name = relative(branch.spec, run.root)
    if not store.get(name, branch.spec):
        raise InputError(f"no branch {k} of {method!r} in the store", file=store.url)
    spec = BranchSpec.load(branch.spec)
    if not store.get(relative(branch.measure, run.root), branch.measure):
        branch.measure.unlink(missing_ok=True)
    with claim(run.root / "fetch.lock", wait_seconds=math.inf):  # jobs of one machine fetch what they share once
        _shared_in(store, run, spec)
    _newest_checkpoint_in(store, run, branch)
    if spec.round > 1 and not any(branch.training_state.glob("*")):
        before = run.method(method).round(spec.round - 1).branch(k)
        if not any(before.training_state.glob("*")):
            _newest_checkpoint_in(store, run, before)
    return spec


def _shared_in(store: Store, run: RunDir, spec: BranchSpec) -> None:
    """Fetches the datasets and θ0, unless another branch has fetched them to this machine."""
    for item in spec.data:
        file = inside(run.root, item.data)
        # Another branch may have fetched this dataset already; a file of other content has another mark beside it.
        if not file.is_file() or not _is_fresh(file, item.fingerprint):
            if not store.get(item.data, file):
                raise InputError(f"the data of {item.name!r} is not in the store", file=store.url)
            _mark_fresh(file, item.fingerprint)
    below = f"{THETA0}/{spec.model_fingerprint}"
    for file_name in store.names(below):
        target = inside(run.root, file_name)
        if not target.is_file():
            store.get(file_name, target)


def _is_fresh(file: Path, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return file.with_name(f"{file.name}.mark").read_text(encoding="utf-8") == mark
    return False


def _mark_fresh(file: Path, mark: str) -> None:
    file.with_name(f"{file.name}.mark").write_text(mark, encoding="utf-8")


def _newest_checkpoint_in(store: Store, run: RunDir, branch: BranchDir) -> None:
    """Fetches the newest whole checkpoint, unless this machine has it."""
    names = store.names(relative(branch.training_state, run.root))
    whole = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == MARKER}
    for folder in sorted(whole, key=step_of, reverse=True):
        if (run.root / folder / MARKER).is_file():
            return
        files = [name for name in names if PurePosixPath(name).is_relative_to(folder)]
        files.sort(key=lambda name: PurePosixPath(name).name == MARKER)  # the marker last
        if all(store.get(name, inside(run.root, name)) for name in files):
            store.get(relative(branch.log, run.root), branch.log)
            return


class _StageOut:
    """Uploads what a branch writes while it trains."""

    def __init__(self, store: Store, run: RunDir, branch: BranchDir) -> None:
        self.store, self.run, self.branch = store, run, branch
        self._put: set[str] = set()
        self._seen: dict[Path, float] = {}

    def small_files(self) -> None:
        """Uploads progress, log, output and event files that have changed."""
        output = os.environ.get("MERIT_OUTPUT")
        sources = {self.branch.progress: self.branch.progress, self.branch.log: self.branch.log}
        if output:
            sources[self.branch.output] = Path(output)
        sources |= {file: file for file in self.branch.tensorboard.glob("*")}
        for target, source in sources.items():
            with contextlib.suppress(FileNotFoundError):
                changed = source.stat().st_mtime
                if self._seen.get(target) != changed:
                    self.store.put(source, relative(target, self.run.root))
                    self._seen[target] = changed

    def leave_out(self, before: BranchDir) -> None:
        """Does not upload the checkpoints that are those of `before`."""
        self._put |= {folder.name for folder in before.training_state.glob("checkpoint-*")}

    def checkpoints(self) -> None:
        """Uploads whole checkpoints that the store lacks, each with its marker last, and removes old ones."""
        for folder in sorted(self.branch.training_state.glob("checkpoint-*"), key=step_of):
            if folder.name in self._put or not (folder / MARKER).is_file():
                continue
            files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name == MARKER)
            try:
                for file in files:
                    self.store.put(file, relative(file, self.run.root))
            except FileNotFoundError:
                continue  # the trainer has removed it, because there is a newer one
            self._put.add(folder.name)
        for name in sorted(self._put, key=lambda name: step_of(PurePosixPath(name)))[:-KEPT]:
            self.store.remove(relative(self.branch.training_state / name, self.run.root))
            self._put.discard(name)

    def result(self, result: BranchResult, *, last: bool) -> None:
        """Uploads the trained checkpoint, then DONE. The training state stays where another round goes on from it."""
        for name in result.files:
            self.store.put(self.branch.root / name, relative(self.branch.root / name, self.run.root))
        for file in sorted(self.branch.snapshot(0).parent.glob("*.npy")):
            self.store.put(file, relative(file, self.run.root))
        self.small_files()
        self.store.put(self.branch.done, relative(self.branch.done, self.run.root))
        if last:
            self.store.remove(relative(self.branch.training_state, self.run.root))


def fetch_result(store: Store, run: RunDir, branch: BranchDir, mark: str, *, tries: int = 3) -> bool:
    """Fetches a finished branch from the store and verifies it file by file; False if the store has none.

    Args:
        mark: the fingerprint of the branch's spec. The result of another spec is not fetched.

    Raises:
        StageError: a file arrives damaged in several tries.
    """
    incoming = branch.root / "DONE.store"
    if not store.get(relative(branch.done, run.root), incoming):
        return False
    result = BranchResult.load(incoming)
    if result.fingerprint != mark:
        incoming.unlink()
        return False
    for name, wanted in result.files.items():
        file = inside(branch.root, name)
        left = tries
        while damaged(branch.root, {name: wanted}):
            if not left:
                raise StageError(f"{file}: arrived damaged from {store.url} in {tries} tries")
            store.get(relative(file, run.root), file)
            left -= 1
    for folder in (branch.snapshot(0).parent, branch.tensorboard):
        for name in store.names(relative(folder, run.root)):
            store.get(name, inside(run.root, name))
    store.get(relative(branch.log, run.root), branch.log)
    store.get(relative(branch.output, run.root), branch.output)
    incoming.replace(branch.done)
    return True


class Staging:
    """The driver's side: a run and its mirror in the store."""

    def __init__(self, context: RunContext) -> None:
        """Raises InputError: the store cannot be opened."""
        self.context = context
        self.store = Store(store_url(context))
        self._looked: dict[str, float] = {}

    def send(self, branches: Sequence[BranchDir]) -> None:
        """Uploads specs, data and, if it has no Hub id, θ0. Removes what another plan left of a branch.

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
                known = kept(incoming, BranchSpec).record if self.store.get(name, incoming) else None
                incoming.unlink(missing_ok=True)
                if known is None or not known.same_training(spec):
                    self.store.remove(relative(branch.root, run.root))
                for item in spec.data:
                    mark = f"{item.data}.{item.fingerprint}"  # an empty file whose name says which content is there
                    if mark not in there:
                        self.store.put(inside(run.root, item.data), item.data)
                        self._put_mark(mark)
                        there.add(mark)
                if spec.round > 1:
                    self._send_model(inside(run.root, spec.model.path), spec.model_fingerprint, there)
                elif self.model_is_local:
                    self._send_model(self.context.model.path, self.context.model.fingerprint, there)
                if branch.measure.is_file():
                    self.store.put(branch.measure, relative(branch.measure, run.root))
                else:
                    self.store.remove(relative(branch.measure, run.root))
                self.store.put(branch.spec, name)
                bar.update(index + 1)

    def fetch(self, branch: BranchDir) -> bool:
        """Fetches a branch if it is done; False if it is not.

        Raises:
            StageError: its files arrive damaged, or the store cannot be reached.
        """
        mark = fingerprint(BranchSpec.load(branch.spec))
        return fetch_result(self.store, self.context.run, branch, mark)

    def look(self, job: Job) -> None:
        """Fetches a job's progress, every few seconds."""
        now = time.monotonic()
        if now - self._looked.get(job.name, 0.0) >= _LOOK_SECONDS:
            self._looked[job.name] = now
            with contextlib.suppress(StageError):
                self.store.get(relative(job.progress, self.context.run.root), job.progress)

    @property
    def model_is_local(self) -> bool:
        """Whether other machines cannot get θ0 from the Hub."""
        path = self.context.config.model.path
        return path.startswith("embedded:") or (self.context.base / path).exists()

    def _send_model(self, folder: Path, mark: str, there: set[str]) -> None:
        below = f"{THETA0}/{mark}"
        for file in sorted(file for file in folder.rglob("*") if is_own(file, folder)):
            name = f"{below}/{file.relative_to(folder).as_posix()}"
            if name not in there:
                self.store.put(file, name)
                there.add(name)

    def _put_mark(self, name: str) -> None:
        empty = self.context.run.engine / "empty"
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
        self.store.put(empty, name)


def store_url(context: RunContext) -> str:
    """The run's mirror: a folder of the run's name below `launch.store`. Always a URL: `merit train` takes a plain path
    for the run itself."""
    base = context.config.launch.store or ""
    if not is_url(base):
        base = f"file://{Path(base).absolute()}"
    return f"{base.rstrip('/')}/{Path(context.run.root).resolve().name}"
