"""Memory of large tensors is taken from the system once, not once a step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch
from hf_finetune.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(32):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library without mallopt")


def measured(how: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name not in ("LD_PRELOAD", "GLIBC_TUNABLES")
    }
    return subprocess.run([sys.executable, "-c", MEASURE, how], env=plain | environment, capture_output=True, text=True)


@glibc
def test_pages_are_asked_for_once() -> None:
    kept, given_back = (int(measured(how).stdout) for how in ("keep", "default"))
    assert given_back > 4 * kept


@glibc
def test_a_setting_of_the_user_is_left_alone() -> None:
    assert "AssertionError" in measured("keep", MALLOC_ARENA_MAX="2").stderr
