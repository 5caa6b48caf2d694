"""Channels-last memory changes no gradient on any CPU, for one thread and for two."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.running import ROOT

LIMIT = 300  # seconds: a wrong library may loop for ever


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@cache
def checked(limited: bool) -> subprocess.CompletedProcess:
    limits = AVX2 if limited else {}
    # Or two threads on one free core, or both on the same, spin most of the time.
    limits = limits | {"OMP_WAIT_POLICY": "passive", "OMP_PROC_BIND": "true"}
    return subprocess.run(
        [sys.executable, "-m", "tests.memory_order", "1", "2"],
        cwd=ROOT,
        env=os.environ | limits,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def has_only_avx2() -> bool:
    """Whether a process that is limited to it computes as one that is not."""
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    lesser = "avx2" in flags and not flags & {"avx512f", "avx_vnni"}
    return lesser or AVX2.items() <= os.environ.items()


@pytest.mark.parametrize("largest", [None, "avx2"])
def test_gradients_equal_those_in_contiguous_memory(largest):
    """``largest``: vector instructions that the libraries may use at most, None as they like."""
    result = checked(largest is not None or has_only_avx2())
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall("^0 of ", result.stdout, re.MULTILINE)) == 2
