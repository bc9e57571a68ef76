"""Memory of large tensors is taken from the system once, not once a step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from hf_finetune.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for step in range(32):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
print(given_back, faults())
"""
TRY = "from hf_finetune.training.allocator import keep_freed_memory; print(keep_freed_memory())"
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library without mallopt")


def output(script: str, **environment: str) -> str:
    chosen = ("LD_PRELOAD", "GLIBC_TUNABLES")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name not in chosen}
    return subprocess.run([sys.executable, "-c", script], env=plain | environment, capture_output=True, text=True, check=True).stdout


@glibc
def test_pages_are_asked_for_once() -> None:
    given_back, kept = map(int, output(MEASURE).split())
    assert given_back > 4 * kept


@glibc
def test_a_setting_of_the_user_is_left_alone() -> None:
    assert output(TRY) == "True\n"
    assert output(TRY, MALLOC_ARENA_MAX="2") == "False\n"
