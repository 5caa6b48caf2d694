"""--nr-budget: what the rebuilt network keeps; of seconds in a table beside the run."""

import json

import pytest
import torch

import nr
from nr.method import latency
from tests.training.run.small_runs import AFTER, BEFORE, LAST, assert_same_end, go, resume
from utils.errors import InputError
from utils.training import checkpoint
from utils.training.phases import TABLE

SECONDS = "--nr-budget latency --nr-latency-batch 2"


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A nanosecond an entry of what is read, in the place of a clock; returns how often it ran."""
    calls = []

    def timed(work, inputs, repeats=0):
        torch.rand(1)  # as the making of what is timed does
        calls.append(work)
        return 1e-9 * sum(x.numel() for x in inputs)

    monkeypatch.setattr(latency, "timed", timed)
    return calls


def test_a_run_by_latency_says_what_was_predicted_and_measured(epochs, clock, tmp_path, capsys):
    """And takes its table again where it is resumed, here or elsewhere, to the same end."""
    go(tmp_path / "a", f"{SECONDS} --nr-compress-only")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| Latency")]
    assert "Latency of 2: " in line and "ms predicted" in line and "ms measured" in line
    table = json.loads((tmp_path / "a" / TABLE).read_text())
    assert table["batch"] == 2 and table["seconds"]
    assert checkpoint.read(tmp_path / "a" / LAST)["args"]["nr_budget"] == "latency"
    plan = nr.plan(nr.load(tmp_path / "a" / BEFORE), budget=nr.Latency(2, table=table["seconds"]))
    network = nr.load(tmp_path / "a" / AFTER)
    assert nr.count_params(network) == plan.params[1]
    clock.clear()
    resume(tmp_path / "b", f"{SECONDS} --nr-compress-only", path=str(tmp_path / "a" / BEFORE))
    assert len(clock) == 2  # the network before and after, as a whole
    assert_same_end(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / TABLE).write_text("{}")
    with pytest.raises(InputError, match=rf"^--nr-budget latency: .*{TABLE}: is no table"):
        resume(tmp_path / "c", SECONDS, path=str(tmp_path / "a" / BEFORE))


def test_flops_by_either_name(epochs, tmp_path):
    for name, flags in (("a", "--nr-flops"), ("b", "--nr-budget flops")):
        go(tmp_path / name, f"{flags} --nr-compress-only")
    assert_same_end(tmp_path / "a", tmp_path / "b")
