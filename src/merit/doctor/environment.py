"""What a bug report needs to know about this machine. Nothing here imports torch."""

from __future__ import annotations

import locale
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

from merit.base import extensions
from merit.base.machine import free_memory, total_memory, usable_cores, visible_gpus
from merit.jobs.engine import engine_named
from merit.models.source import EMBEDDED, cache_folder

PACKAGE = "merit-tuning"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
_SWITCHES = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "MERIT_CACHE", "NO_COLOR", "RAY_ADDRESS", "SLURM_JOB_ID")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([A-Za-z0-9._-]+)['"]""")

Section = dict[str, str | int | float | None]


def environment() -> dict[str, Section]:
    """Sections of name → value; None for what is missing."""
    return {
        "versions": _versions(),
        "extras": _extras(),
        "engines": {name: engine_named(name).about() for name in extensions.names("engines")},
        "machine": _machine(),
        "devices": _devices(),
        "settings": {name: os.environ.get(name) for name in (*_THREADS, *_SWITCHES)},
        "caches": _caches(),
    }


def _versions() -> Section:
    """merit, Python, and every package that merit asks for."""
    found: Section = {"merit": _version(PACKAGE), "python": platform.python_version(), "interpreter": sys.executable}
    found |= {name: _version(name) for name, extra in _requirements() if not extra}
    return found


def _extras() -> Section:
    """What is installed of each optional part; None if nothing is."""
    needed: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if extra and name != PACKAGE:
            needed.setdefault(extra, []).append(name)
    needed["embedded model"] = [module.replace("_", "-") for module in EMBEDDED.values()]
    found: Section = {}
    for extra, names in needed.items():
        versions = [f"{name} {_version(name) or 'missing'}" for name in names]
        found[extra] = ", ".join(versions) if any(map(_version, names)) else None
    return found


def _requirements() -> list[tuple[str, str | None]]:
    """(package, the extra that asks for it, or None), as merit was installed."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        name, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if name is not None:
            found.append((name[1], extra[1] if extra else None))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Section:
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory GB": round(total_memory() / 1e9, 1),
        "memory free GB": round(free_memory() / 1e9, 1),
        "encoding": locale.getpreferredencoding(False),
    }


def _processor() -> str:
    """The processor's name; `platform` knows only its architecture on Linux."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = ""
    name = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def _devices() -> Section:
    """How torch was built, and the GPUs that jobs may use with their memory and driver."""
    found: Section = {"torch built for": _torch_build(), "GPUs": len(visible_gpus())}
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    if found["GPUs"] and shutil.which(query[0]) is not None:
        try:
            listing = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return found
        for line in listing.splitlines():
            index, _, rest = line.partition(",")
            found[f"GPU {index.strip()}"] = rest.strip()
    return found


def _torch_build() -> str | None:
    """`CUDA 12.8`, `ROCm 6.4` or `CPU`, from the file in which torch says so: importing torch takes seconds."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        said = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    except OSError:
        return None
    return next((f"{kind} {said[key]}" for kind, key in (("CUDA", "cuda"), ("ROCm", "hip")) if said.get(key)), "CPU")


def _caches() -> Section:
    """Where models and datasets are kept, and how much space is free there."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    places = {
        "merit": cache_folder(),
        "Hub": Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),
        "datasets": Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets"),
    }
    return {name: _place(path.expanduser()) for name, path in places.items()}


def _place(path: Path) -> str:
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    free = f"{shutil.disk_usage(there).free / 1e9:.0f} GB free" if there is not None else "no such disk"
    return f"{path} ({free}{'' if path.exists() else ', not there yet'})"
