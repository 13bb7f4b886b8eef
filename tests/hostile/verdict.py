"""What became of one hostile case: refused in a clear line, accepted, or something that must never happen.

While a case runs, an audit hook sees every file that is opened, changed or removed, every process, every connection and
every class that a pickle names; a canary folder lies beside the case, and nothing may look into it.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from merit.base.errors import InputError
from merit.cli.main import answer
from merit.run.events import peak_memory_bytes

MEMORY_BYTES = 400 * 2**20  # what one case may add to the process at most
SECONDS = 20  # of the processor; what one case may take at most
_WAITING = 300  # seconds that may pass: whoever reads a pipe takes none of the processor's
LINE_CHARACTERS = 2_000  # of one line on stderr
CANARY = b"nobody reads this"
KINDS = ("refused", "accepted", "escaped", "traceback")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.rmtree", "shutil.move",
}  # fmt: skip
_PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile"}
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request"}


class Escape(BaseException):
    """Something happened that must not. Not an `Exception`: the product must not be able to swallow it."""


class _Hung(BaseException):
    pass


@dataclass(frozen=True)
class Verdict:
    """One of `KINDS`, and what was seen where it is none of the first two."""

    kind: str
    why: str = ""
    said: str = ""  # on stderr
    peak_bytes: int = 0  # added to the process
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        return self.kind in ("escaped", "traceback")


@dataclass
class Room:
    """A folder for one case at a time, with the canary beside it."""

    root: Path
    seen: list[str] = field(default_factory=list)
    armed: bool = False

    @property
    def case(self) -> Path:
        return self.root / "case"

    @property
    def secret(self) -> Path:
        """What hostile paths point at. A case may know its name."""
        return self.root / "secret"

    @property
    def cache(self) -> Path:
        """Where the product may write besides the case: its own cache."""
        return self.root / "cache"

    def clear(self) -> None:
        """Empties the case's folder."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()

    def judge(self, lay: Callable[[Path], None], act: Callable[[Path], Any], *, watched: bool = True) -> Verdict:
        """Lays out a case in an empty folder, and does with it what a command does."""
        self.clear()
        lay(self.case)
        said, shown = io.StringIO(), io.StringIO()
        self.seen.clear()
        before, started = _forget_peak(), time.process_time()
        why = ""
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown), _alarm(), self._watched(watched):
                code = answer(lambda: act(self.case))
        except _Hung:
            kind, why = "escaped", f"took longer than {SECONDS} s"
        except Escape as error:
            kind, why = "escaped", str(error)
        except MemoryError:
            kind, why = "escaped", "ran out of memory"
        except BaseException as error:
            kind, why = "traceback", _where(error)
        else:
            kind = "accepted" if code == 0 else "refused"
            problem = _wrong_answer(code, said.getvalue()) or seen_on_terminal(said.getvalue() + shown.getvalue())
            if problem:
                kind, why = "escaped", problem
        peak, seconds = max(0, peak_memory_bytes() - before), time.process_time() - started
        if self.seen:
            kind, why = "escaped", self.seen[0]
        elif kind in ("refused", "accepted") and peak > MEMORY_BYTES:
            kind, why = "escaped", f"took {peak / 2**20:,.0f} MiB"
        return Verdict(kind, why, said.getvalue()[:500], peak, seconds)

    @contextlib.contextmanager
    def _watched(self, armed: bool) -> Iterator[None]:
        self.armed = armed
        try:
            yield
        finally:
            self.armed = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook: notes what must not happen. It never raises, which a library might swallow."""
        if not self.armed:
            return
        if event == "open":
            self._opened(arguments)
        elif event in _CHANGES:
            for path in _paths(event, arguments):
                self._changed(event, path)
        elif event in _PROCESSES and list(arguments[1])[:2] != ["git", "-C"]:  # asks for the configuration's commit
            self._note(f"{event} {arguments[:2]!r}")
        elif event in _NETWORK or event == "pickle.find_class":
            self._note(f"{event} {arguments[1:]!r}"[:200])

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = (*arguments, None, None)[:3]
        if isinstance(path, int):
            return
        place = _real(path)
        writes = bool(flags & _WRITES) if isinstance(flags, int) else any(mark in (mode or "") for mark in "wax+")
        if _below(place, self.secret):
            self._note(f"opened the canary {place}")
        elif writes:
            self._changed("open for writing", place)

    def _changed(self, event: str, place: str) -> None:
        if place != os.devnull and not any(_below(place, folder) for folder in (self.case, self.cache)):
            self._note(f"{event} {place!r}, outside of the case")

    def _note(self, what: str) -> None:
        if len(self.seen) < 10:
            self.seen.append(what)


@contextlib.contextmanager
def open_room() -> Iterator[Room]:
    """A room in the fastest temporary folder there is, with a canary in it; the audit hook stays, but sleeps."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="merit-hostile-", dir=memory if memory.is_dir() else None) as name:
        room = Room(Path(name).resolve())
        for folder in (room.case, room.secret, room.cache):
            folder.mkdir()
        for file in ("secret.jsonl", "secret.png", "model.safetensors", "secret.json", "config.json"):
            (room.secret / file).write_bytes(CANARY)
        kept = os.environ.get("MERIT_CACHE")
        os.environ["MERIT_CACHE"] = str(room.cache)
        tempfile.gettempdir()  # the first call tries the folder out
        sys.addaudithook(room.audit)
        try:
            yield room
        finally:
            room.armed = False
            os.environ.pop("MERIT_CACHE")
            if kept is not None:
                os.environ["MERIT_CACHE"] = kept


@contextlib.contextmanager
def limited_memory(more_bytes: int = 6 * 2**30) -> Iterator[None]:
    """A bomb that goes off ends in a MemoryError, and not in the machine's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _wrong_answer(code: int, said: str) -> str:
    if code == 0:
        return ""
    if code != InputError.exit_code:
        return f"exit code {code}: {said[:300]}"
    if not said.strip():
        return "refused without a word"
    long = max(map(len, said.splitlines()))
    return f"a line of {long:,} characters on stderr" if long > LINE_CHARACTERS else ""


def seen_on_terminal(text: str) -> str:
    """Nothing that a terminal would obey: no control character, no direction override, no half a surrogate pair."""
    bad = next((char for char in text if char != "\n" and not char.isprintable()), None)
    return "" if bad is None else f"the terminal gets {bad!r}"


def _where(error: BaseException) -> str:
    """The exception, and the last place in our own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}merit{os.sep}" in frame.filename]
    at = f" at {Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].name})" if own else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())[:200]}"


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The files that an audit event is about, absolute; names relative to an open folder are resolved."""
    if event in ("os.rename", "os.link"):
        sources = [(arguments[0], arguments[2]), (arguments[1], arguments[3])] if len(arguments) > 3 else []
    elif event == "os.symlink":
        sources = [(arguments[1], arguments[2])]
    elif event in ("shutil.move",):
        sources = [(arguments[0], -1), (arguments[1], -1)]
    else:
        folder = {"os.mkdir": 2, "os.chmod": 2, "os.chown": 3, "os.utime": 3}.get(event, 1)
        sources = [(arguments[0], arguments[folder] if len(arguments) > folder else -1)]
    return [_real(path, folder, last=event != "os.truncate") for path, folder in sources if not isinstance(path, int)]


def _real(path: Any, folder: Any = -1, *, last: bool = False) -> str:
    """`path` without links; with `last`, its last part is kept even if it is one."""
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    if last:
        head, tail = os.path.split(os.path.abspath(text))
        return os.path.join(os.path.realpath(head), tail)
    return os.path.realpath(text)


def _below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}{os.sep}")


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Hung

    timers = {signal.SIGALRM: (signal.ITIMER_REAL, _WAITING), signal.SIGPROF: (signal.ITIMER_PROF, SECONDS)}
    kept = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, kept[number])


def _forget_peak() -> int:
    """Sets the process's peak back to what it holds now, where the kernel lets it, and returns that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory_bytes()
