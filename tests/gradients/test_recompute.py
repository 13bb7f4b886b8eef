"""What `recompute` does to the process's memory, in a process of its own: the setting cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

HELD = """
import os, sys, torch
from merit.compute.recompute import return_freed_tensors

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "returned":
    return_freed_tensors()
before = resident()
tensors, between = [], []
for _ in range(24):
    tensors.append(torch.ones(2**20))
    between.append(torch.ones(2**12))
del tensors
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap is what is tuned")
def test_freed_tensors_go_back_to_the_system():
    # A heap that takes tensors and gives nothing back: what glibc's own thresholds come to is chance.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    held = {
        mode: int(subprocess.run([sys.executable, "-c", HELD, mode], capture_output=True, check=True, env=env).stdout)
        for mode in ("as it is", "returned")
    }
    assert held["as it is"] > 2**24, "of 96 MB of tensors; else there is nothing to mend"
    assert held["returned"] < 2**22
