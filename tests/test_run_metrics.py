"""What a run says it cost."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from hf_finetune.run_metrics import peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak of a process cannot be reset")
def test_peak_memory_is_that_of_the_run_and_not_of_an_earlier_one() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    with mmap.mmap(-1, 400_000_000) as large:  # not from the heap, where there may be memory that was freed and kept
        for page in range(0, len(large), mmap.PAGESIZE):
            large[page] = 1
        assert peak_memory_bytes(CPU) > before + 300_000_000
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < before + 200_000_000
