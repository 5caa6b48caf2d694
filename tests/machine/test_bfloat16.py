"""machine.bfloat16: one line for --amp on a CPU that lacks the instructions."""

import pytest
import torch

from tests.running import drive
from utils.machine import bfloat16

LINE = "--amp: this CPU has no bfloat16 instructions, so it is slower than without\n"
X86 = "processor\t: 0\nmodel name\t: A CPU with bf16 : in its name\nflags\t\t: fpu avx2 {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"
FLAGS = (
    "-d synthetic --subset 50 -a resnet --depth 8 --width-mult 0.0625 --epochs 1 --schedule 9"
    " --nr-target 1 --manualSeed 0"
)


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Pretend that this is what the system says of its CPU; None: nothing."""

    def pretend(text: str | None) -> None:
        monkeypatch.setattr(bfloat16, "CPUINFO", tmp_path / "cpuinfo")
        if text is not None:
            bfloat16.CPUINFO.write_text(text)

    return pretend


@pytest.mark.parametrize("text", [X86.format("avx512f"), ARM.format("sve")])
def test_without_the_instructions_one_line_says_so(cpu, capsys, text):
    cpu(text)
    bfloat16.say_if_slow(torch.device("cpu"))
    assert capsys.readouterr().out == LINE


@pytest.mark.parametrize(
    "text",
    [
        X86.format("avx512_bf16"),
        X86.format("amx_tile amx_bf16"),
        ARM.format("bf16"),
        "processor: 0\n",
        None,
    ],
)
def test_nothing_is_said_of_others_and_of_what_is_unknown(cpu, capsys, text):
    cpu(text)
    bfloat16.say_if_slow(torch.device("cpu"))
    assert capsys.readouterr().out == ""


def test_nothing_is_said_of_a_gpu(cpu, capsys):
    cpu(X86.format(""))
    bfloat16.say_if_slow(torch.device("cuda"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("flag", "lines"), [("--amp", 1), ("", 0)])
def test_a_run_says_it_once_and_only_with_amp(cpu, tmp_path, flag, lines):
    cpu(X86.format(""))
    assert drive(f"{FLAGS} {flag}", tmp_path / "run").stdout.count(LINE) == lines
