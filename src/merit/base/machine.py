"""This machine: its memory, cores and GPUs, how jobs share them, and the command that starts one.

Nothing here imports torch, and psutil is imported only when it is needed, so that `merit --help` stays instant.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# With `-m` alone Python looks for modules in the current folder first, which may hold a stranger's `torch.py`.
PYTHON = (sys.executable, "-P")


def total_memory() -> int:
    """Bytes of memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Bytes that a program could allocate now; the system's caches count as free."""
    import psutil

    return int(psutil.virtual_memory().available)


def usable_cores() -> int:
    """Cores that this process may use; a scheduler or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_elsewhere(seconds: float = 0.2, stat: Path = Path("/proc/stat")) -> float:
    """How many of the cores that this process may use others keep busy, measured for so long; 0 where the system does
    not say."""

    def busy() -> float:
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in stat.read_text().splitlines()]
        # User and system time; who is nice gives way.
        ticks = sum(int(line[1]) + int(line[3]) for line in lines if line and line[0] in ours)
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()

    try:
        before, begun = busy(), time.perf_counter()
        time.sleep(seconds)
        return max(0.0, (busy() - before) / (time.perf_counter() - begun))
    except (OSError, ValueError, AttributeError):  # the last: no Linux
        return 0.0


def merit_command(*arguments: str) -> list[str]:
    """`merit ARGUMENTS`, whatever is on the PATH, with this interpreter."""
    return [*PYTHON, "-m", "merit", *arguments]


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES takes them; empty on a CPU machine."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [item.strip() for item in chosen.split(",") if item.strip() not in ("", "-1")]
    return [str(index) for index, _ in enumerate(gpu_names())]


def gpu_names() -> list[str]:
    """The model of every GPU of this machine, as NVIDIA's driver names it."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listing, re.MULTILINE)


def gpu_memory() -> list[int]:
    """Bytes of memory of every GPU of this machine."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in listing.split() if line.isdigit()]


def slot_environments(parallel: int | None, gpus: list[str], cores: int) -> list[dict[str, str]]:
    """One environment for each job that runs at the same time.

    With GPUs, one job per GPU unless `parallel` says otherwise. On CPU, one job with all cores by default; several jobs
    divide the cores.
    """
    count = parallel or max(1, len(gpus))
    slots = []
    for index in range(count):
        env = thread_environment(max(1, cores // count))
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        slots.append(env)
    return slots


def local_slots(parallel: int | None) -> int:
    """How many jobs run on this machine at once."""
    return len(slot_environments(parallel, visible_gpus(), usable_cores()))


# Idle OpenMP threads spin for microseconds and then sleep. If they spun on, everything else on the machine would wait
# for them; if they slept at once, a training step on two cores would take up to twice as long.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}


def _user_waits() -> bool:
    """Whether the user has chosen how threads wait. `passive` alone is our choice too, but they would sleep at once."""
    return "GOMP_SPINCOUNT" in os.environ or os.environ.get("OMP_WAIT_POLICY", "passive").lower() != "passive"


def thread_environment(threads: int) -> dict[str, str]:
    """Variables for a job that may use `threads` cores; fewer, and other ways to wait, if this process's own say so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        threads = min(threads, int(asked))
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **({} if _user_waits() else _WAITING)}


def wait_passively() -> None:
    """Lets this process's OpenMP threads yield to others while they wait, unless the user says how they are to wait.

    Call it before torch is imported: OpenMP reads it then.
    """
    if not _user_waits():
        os.environ |= _WAITING
