"""Python processes that need not import torch first: they are forked from one that has imported it and done no more.

A process of its own, `merit` or a script, spends up to eight seconds on imports; a fork takes milliseconds. It is a
process like any other all the same: a child of the one that asked for it, with its own pid, files, environment and
signals. Only torch keeps to one thread, whatever the environment says: the other core has tests of its own, and two
threads that wait for each other take five times as long. Tests whose point is how a process starts, or what it imports,
start it with `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# In a process's environment: the jobs that it starts are forked too.
WARM_JOBS = {"MERIT_TEST_WARM_JOBS": "1"}
_READ_AT_START = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONHASHSEED")}
_HERE = str(Path(__file__).resolve().parent)
_SET_CHILD_SUBREAPER = 36  # of prctl: orphans below this process become its children


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, for `python [-P] -m MODULE …`, `-c CODE …` and `FILE.py …` with the imports done."""

    def _execute_child(self, *arguments: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(start).bind(*arguments).arguments
        command = [os.fsdecode(part) for part in asked["args"]]
        env = dict(os.environ if asked["env"] is None else asked["env"])
        safe = command[1:2] == ["-P"]
        program = command[1 + safe :]
        if (
            command[0] != sys.executable
            or not program[0].endswith((".py", "-m", "-c"))
            or any(env.get(name) != value for name, value in _READ_AT_START.items())
            or sys.platform != "linux"
        ):
            start(*arguments)
            return
        request = {
            "program": program,
            "safe": safe or "PYTHONSAFEPATH" in env,
            "env": env,
            "cwd": os.fspath(asked["cwd"] or Path.cwd()),
            "session": asked["start_new_session"],
        }
        streams = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        self.pid = _Nursery.ours().start(request, [n if fd == -1 else fd for n, fd in enumerate(streams)])
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in names))  # type: ignore[attr-defined]


@contextlib.contextmanager
def jobs() -> Iterator[None]:
    """Meanwhile the local engine forks its jobs."""
    from merit.jobs import process

    before = process.subprocess
    process.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": Popen})  # type: ignore[assignment]
    try:
        yield
    finally:
        process.subprocess = before  # type: ignore[assignment]


def import_everything() -> None:
    """What a run imports on its way. Nothing computes in this process: a fork must find no threads."""
    import datasets
    import plotly.offline
    import sklearn.cluster
    import torch
    import transformers
    import trl

    import merit.cli.main
    import merit.diagnose.bench
    import merit.evaluate.measure
    import merit.merge.average
    import merit.pipeline
    import merit.report.page
    import merit.train.branch

    # Lazy modules of theirs.
    _ = (datasets.Dataset, torch.nn.Module, transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast)
    _ = (trl.SFTTrainer, plotly.offline.get_plotlyjs, sklearn.cluster.KMeans, merit)


class _Nursery:
    """The process that forks, as the one sees it that asks."""

    _ours: _Nursery | None = None

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @classmethod
    def ours(cls) -> _Nursery:
        """This process's own, which ends with it; started at the first call."""
        if cls._ours is None or cls._ours._owner != os.getpid():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            find = f"import sys; sys.path.append({_HERE!r}); import warm; sys.path.pop()"
            program = f"{find}; warm.serve({theirs.fileno()})"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            process.returncode = 0  # nobody waits for it
            theirs.close()
            cls._ours = cls(ours)
        return cls._ours

    @classmethod
    def divide(cls) -> None:
        """Gives this process one of its own before it does anything."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            ours.close()
            os.setsid()
            for stream in (0, 1, 2):  # those that read ours shall not wait for the end of this process
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
            _serve(theirs)
        theirs.close()
        cls._ours = cls(ours)

    def start(self, request: dict[str, Any], streams: list[int]) -> int:
        """The pid of a new child of this process."""
        with self._lock:
            libc = ctypes.CDLL(None)
            libc.prctl(_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._line, [json.dumps(request).encode()], streams)
                answer = self._line.recv(100)
            finally:
                libc.prctl(_SET_CHILD_SUBREAPER, 0)
        if not answer:
            raise RuntimeError("the process that tests fork from is gone")
        return int(answer)


def serve(line: int) -> NoReturn:
    """Imports, then forks whenever it is asked to; `line` is a file descriptor."""
    import_everything()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=line))


def _serve(line: socket.socket) -> NoReturn:
    """Forks as often as asked, until the other end is closed."""
    while True:
        data, streams, _, _ = socket.recv_fds(line, 2**20, 3)
        if not data:
            os._exit(0)
        # Forked twice: a process whose parent ends becomes a child of the one that asked.
        between = os.fork()
        if not between:
            between = os.getpid()
            if not os.fork():
                while os.getppid() == between:
                    time.sleep(0.0002)
                line.send(str(os.getpid()).encode())
                line.close()
                _begin(json.loads(data), streams)
            os._exit(0)
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)


def _begin(request: dict[str, Any], streams: list[int]) -> NoReturn:
    code = 1
    try:
        if request["session"]:
            os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        with contextlib.ExitStack() as stack:
            if all(os.environ.pop(name, None) for name in WARM_JOBS):
                _Nursery.divide()
                stack.enter_context(jobs())
            _run(request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as Python ends
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _run(request: dict[str, Any]) -> None:
    """As Python does with its command line."""
    first, *arguments = request["program"]
    what = arguments.pop(0) if first in ("-m", "-c") else first
    sys.argv = [first, *arguments]
    if not request["safe"]:
        sys.path.insert(0, {"-c": "", "-m": request["cwd"]}.get(first, str(Path(first).parent)))
    if first == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif first == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        runpy.run_path(what, run_name="__main__")
