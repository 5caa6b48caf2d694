"""Channels-last memory changes no gradient on any CPU, for one thread and for two."""

import os
import re
import subprocess
import sys

import pytest

from tests.running import ROOT

LIMIT = 300  # seconds: a wrong library may loop for ever


@pytest.mark.parametrize("largest", [None, "avx2"])
def test_gradients_equal_those_in_contiguous_memory(largest):
    """``largest``: vector instructions that the libraries may use at most, None as they like."""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if largest else {}
    limits["OMP_WAIT_POLICY"] = "passive"  # or two threads on one free core spin most of the time
    result = subprocess.run(
        [sys.executable, "-m", "tests.memory_order", "1", "2"],
        cwd=ROOT,
        env=os.environ | limits,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall("^0 of ", result.stdout, re.MULTILINE)) == 2
