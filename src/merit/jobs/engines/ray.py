"""Runs jobs on a Ray cluster: one task a job, on the machines of a pool. Needs the extra `ray`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError, first_line
from merit.base.files import disk_errors
from merit.base.machine import thread_environment
from merit.config.launch import LaunchConfig, RayConfig, RayPool
from merit.jobs.drive import DrivenExecutor, RetryPolicy, Slot
from merit.jobs.engine import Engine
from merit.jobs.job import End, Job, last_line
from merit.jobs.process import ended, read_progress, start_process, stop_processes

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_MANY = 1000  # slots of a pool without a limit: Ray queues what has no room
NOT_INSTALLED = "Ray is not installed; run `pip install 'merit-tuning[ray]'`"
_KNOCK_SECONDS = 10
_ASK_SECONDS = 5  # between two checks of the head
_SILENT_SECONDS = 30  # Ray ends this whole process after its head has been silent for a minute
# Ray speaks HTTP/2: how a client begins, with no settings of its own. A server's first frame has its settings (type 4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RayExecutor(DrivenExecutor):
    """Starts each job as a task on the cluster. A task that loses its machine starts again on another.

    `run` also raises InputError: Ray is not installed or not reachable.
    """

    def __init__(self, launch: LaunchConfig, policy: RetryPolicy) -> None:
        super().__init__(lambda: RayBackend(launch), policy)


class RayBackend:
    """A Ray cluster. Tasks end when their driver does."""

    engine = "ray"

    def __init__(self, launch: LaunchConfig) -> None:
        self._config = launch.ray
        self._parallel = launch.parallel
        self._store = launch.store is not None
        self._tasks: dict[str, tuple[Any, Slot, int]] = {}  # job → reference, slot, bytes printed before
        self._about: dict[str, tuple[str, str]] = {}  # job → Ray's id of its task, and where it is

        self._ray, self._started = connect(self._config)
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)
            self._head = head_of(self._ray, self._config)
            self._pools = pools_of(self._config)
            there = self._ray.cluster_resources()
            self._gpus_there = there.get("GPU", 0.0) >= 1
            self._slots = self._make_slots(there)
            self._task = self._ray.remote(run_job)
            stack.pop_all()

    def _leave(self) -> None:
        if self._started:
            self._ray.shutdown()

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        for job, slot in placed:  # no call to the head here: if it is gone, Ray waits, and then ends this process
            pool = self._pools[slot.pool]
            cpus = pool.cpus or self._config.cpus
            task = self._task.options(
                name=job.name,
                num_cpus=cpus,
                num_gpus=self._gpus(pool),
                resources=dict(pool.resources) or None,
                accelerator_type=pool.accelerator,
                memory=None if self._config.memory_gb is None else int(self._config.memory_gb * 1e9),
                max_retries=0,  # merit counts restarts, and would not see Ray's own
            )
            printed = job.output.stat().st_size if job.output.exists() else 0
            reference = task.remote(job, sys.executable, max(1, int(cpus)), elsewhere=self._store)
            self._tasks[job.name] = (reference, slot, printed)
            self._about[job.name] = (reference.task_id().hex(), slot.pool)

    def poll(self, job: Job) -> End | None:
        reference, _, printed = self._tasks[job.name]
        end: End
        ready, _ = self._ray.wait([reference], timeout=0)
        if not ready:
            return None
        failures = self._ray.exceptions
        try:
            end, host = self._ray.get(reference)
            self._about[job.name] = (self._about[job.name][0], host)
        except failures.OutOfMemoryError:
            end = End("died", -signal.SIGKILL, "Ray ended it: the machine ran out of memory")
        except (failures.WorkerCrashedError, failures.NodeDiedError, failures.ObjectLostError) as error:
            end = End("lost", None, first_line(error))
        except failures.RayTaskError as error:  # before the process began: no such folder there, or no merit
            end = End("died", 1, first_line(error.cause))
        except failures.RayError as error:
            end = End("died", None, first_line(error))
        if end.kind != "done" and job.done.exists():
            end = End("done")
        elif end.kind == "lost" and not end.said:
            end = End("lost", None, last_line(job.output, printed))
        del self._tasks[job.name]
        return end

    def state(self, job: Job) -> dict[str, Any]:
        return read_progress(job)

    def about(self, job: Job) -> tuple[str, str]:
        return self._about.get(job.name, ("", ""))

    def end(self, job: Job) -> None:
        reference, _, _ = self._tasks.pop(job.name)
        self._ray.cancel(reference, force=False)
        self._ray.wait([reference], timeout=30)

    def close(self, cancel: bool) -> None:
        references = [reference for reference, _, _ in self._tasks.values()]
        try:
            for reference in references:
                self._ray.cancel(reference, force=False)
            if references:
                self._ray.wait(references, num_returns=len(references), timeout=15)
            self._tasks.clear()
        finally:
            self._leave()

    def pause(self) -> None:
        references = [reference for reference, _, _ in self._tasks.values()]
        if references:
            self._ray.wait(references, timeout=_POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS)
        self._head.look()

    def now(self) -> float:
        return time.monotonic()

    def _make_slots(self, there: Mapping[str, float]) -> list[Slot]:
        slots = []
        for name, pool in self._pools.items():
            needs = {"CPU": pool.cpus or self._config.cpus, "GPU": self._gpus(pool), **pool.resources}
            for key, amount in needs.items():
                if amount > there.get(key, 0.0):
                    # An autoscaler may still add machines, and does so only when they are asked for.
                    _log.warning("no %s on the Ray cluster yet for pool %s; jobs wait until there is", key, name)
            count = pool.slots or self._parallel or _MANY
            slots += [Slot(name, index, pool.speed) for index in range(count)]
        return slots

    def _gpus(self, pool: RayPool) -> float:
        if pool.gpus is not None:
            return pool.gpus
        if self._config.gpus is not None:
            return self._config.gpus
        return 1.0 if self._gpus_there else 0.0


def pools_of(config: RayConfig) -> dict[str, RayPool]:
    """The pools of the configuration, or one that holds the whole cluster."""
    return dict(config.pools) or {
        "cluster": RayPool(resources=config.resources, accelerator=config.accelerator, slots=None)
    }


def _elsewhere(job: Job) -> Job:
    """The job on this machine, which does not see the run directory: its files go to a temporary folder of the user."""
    home = Path(tempfile.gettempdir()) / f"merit-jobs-{os.getuid()}"
    with disk_errors(home):
        home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():  # anyone can make one there
        raise InputError("belongs to another user", file=home)
    folder = home / hashlib.sha256(str(job.output).encode()).hexdigest()[:16]
    return replace(job, done=folder / "DONE", progress=folder / "progress.json", output=folder / "output.txt")


def run_job(job: Job, driver_python: str, threads: int, *, elsewhere: bool = False) -> tuple[End, str]:
    """Runs the job to its end, on a machine of the cluster; returns how it ended and where.

    A job is a process and not a Python call. So it is the same command on every engine, it always frees its GPU memory,
    and it cannot harm Ray's worker.

    Args:
        elsewhere: whether this machine does not see the run directory.
    """
    command = [sys.executable if part == driver_python else part for part in job.command]
    job = _elsewhere(job) if elsewhere else job
    started = start_process(job, command, thread_environment(threads))
    code: int | None = None
    try:
        while code is None:  # cancelling a task interrupts it, which a wait without a timeout would not notice
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = started.process.wait(timeout=1)
    finally:
        if code is None:
            stop_processes([started.process])
    return ended(job, code, started.printed), os.uname().nodename


def connect(config: RayConfig) -> tuple[Any, bool]:
    """The `ray` module, connected; and whether this call connected it.

    Raises:
        InputError: not installed, no cluster answers, or none can be started here.
    """
    try:
        import ray
    except ImportError:
        raise InputError(NOT_INSTALLED, field="launch.engine") from None
    if ray.is_initialized():
        return ray, False
    address, field = _address(config)
    _knock(address, field)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _hushed():
            ray.init(
                address=config.address,
                namespace="merit",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if address else False,
            )
    except Exception as error:  # Ray passes on its parts' errors, and raises plain Exception if one does not start
        what = "Ray does not start on this machine" if address is None else f"no Ray cluster answers at {address}"
        raise InputError(f"{what}: {_reason(error)}", field=field) from None
    finally:
        for number, handler in handlers.items():  # Ray installs its own handler of SIGTERM
            signal.signal(number, handler)
    return ray, True


def _address(config: RayConfig) -> tuple[str | None, str]:
    """The address that Ray will use, by its own rules, and the setting that gave it."""
    if config.address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    return config.address, "launch.ray.address" if config.address else "launch.engine"


def _knock(address: str | None, field: str) -> None:
    """Checks that Ray answers at `address`. Ray itself would wait for minutes, or for ever, if it does not.

    Raises:
        InputError: nobody answers there, or something that is not Ray.
    """
    place = _host_and_port(address)
    if place is None:
        if address is not None and address.startswith("ray://"):
            raise InputError(f"{address} is no address of Ray; write ray://HOST:10001", field=field)
        return
    try:
        with socket.create_connection(place, timeout=_KNOCK_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return  # it answers nobody without a certificate
            line.sendall(_HELLO)
            settings = line.makefile("rb").read(9)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
        raise InputError(f"no Ray cluster answers at {address}: {error}", field=field) from None
    if settings[3:4] != b"\x04":
        raise InputError(f"no Ray cluster answers at {address}: another program listens there", field=field)


def _reason(error: Exception) -> str:
    if "InvalidAuthToken" in str(error.__cause__):
        return "it asks for its token; copy the cluster's ~/.ray/auth_token here, and set RAY_AUTH_MODE=token"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "Failed to start GCS. Last 5 lines of error files:" and the lines.
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 and lines[0].endswith(":") else first_line(error)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hides what Ray's C++ code prints, past Python, about each attempt to connect."""
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _host_and_port(address: str | None) -> tuple[str, int] | None:
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d{1,5})", address or "")
    return (found[1], int(found[2])) if found else None


def head_of(ray: Any, config: RayConfig) -> Head:
    """The head of the cluster that `ray` is connected to."""
    address, _ = _address(config)
    if address is not None and address.startswith("ray://"):
        return Head(address)
    return Head(ray.get_runtime_context().gcs_address)


class Head:
    """The head of a cluster, checked every few seconds."""

    def __init__(self, address: str) -> None:
        self._address, self._place = address, _host_and_port(address)
        self._asked = self._answered = time.monotonic()

    def look(self) -> None:
        """Raises StageError if the head has not answered for half a minute."""
        now = time.monotonic()
        if self._place is None or now - self._asked < _ASK_SECONDS:
            return
        self._asked = now
        try:
            socket.create_connection(self._place, timeout=_ASK_SECONDS).close()
            self._answered = now
        except OSError as error:
            if now - self._answered >= _SILENT_SECONDS:
                raise StageError(
                    f"the head of the Ray cluster at {self._address} is gone ({error}); run again to resume "
                    "when there is one"
                ) from None


ENGINE = Engine(
    executor=lambda launch, policy, _: RayExecutor(launch, policy),
    about=lambda: f"Ray {metadata.version('ray')}" if importlib.util.find_spec("ray") is not None else NOT_INSTALLED,
)
