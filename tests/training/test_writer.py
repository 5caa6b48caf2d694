"""training.writer: one write at a time beside the thread that asks for it, and none is lost."""

import threading
from collections import OrderedDict

import pytest
import torch

from utils.errors import InputError
from utils.training.writer import Writer, copied, finished

LIMIT = 60  # seconds after which a test that waits for another thread fails


@pytest.fixture
def gate():
    """What a write waits for; opened at the latest when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def failing(payload: dict) -> None:
    raise InputError("disk full")


def test_the_caller_goes_on_and_may_change_everything_in_place(gate):
    """Also what torch changes in place: weights, momentum, statistics."""
    weight, seen = torch.ones(3), []

    def slow(payload: dict) -> None:
        assert gate.wait(LIMIT)
        seen.append(payload)

    writer, rows = Writer(), [1]
    writer.write({"weight": weight, "nested": ({"rows": rows},)}, slow)
    weight.add_(1)
    rows.append(2)
    assert seen == []
    gate.set()
    writer.wait()
    (payload,) = seen
    assert payload["weight"].tolist() == [1, 1, 1]
    assert payload["nested"] == ({"rows": [1]},)


def test_two_writes_never_overlap_and_there_is_one_copy_at_a_time(gate, monkeypatch):
    """The second is copied after the first is written, so the newest state is what it saves."""
    events = []
    writer, weight = Writer(), torch.zeros(1)

    def slow(payload: dict) -> None:
        assert gate.wait(LIMIT)
        events.append(f"wrote {payload['weight'].item():g}")

    def quick(payload: dict) -> None:
        events.append(f"wrote {payload['weight'].item():g}")

    writer.write({"weight": weight}, slow)
    monkeypatch.setattr(
        "utils.training.writer.copied", lambda payload: events.append("copied") or copied(payload)
    )
    threading.Timer(0.1, gate.set).start()
    weight.fill_(1)
    writer.write({"weight": weight}, quick)
    writer.wait()
    assert events == ["wrote 0", "copied", "wrote 1"]


def test_an_error_is_raised_once_at_the_next_write_and_that_is_not_begun():
    writer, written = Writer(), []
    writer.write({}, failing)
    with pytest.raises(InputError, match=r"^disk full$"):
        writer.write({}, written.append)
    writer.wait()
    assert written == []
    writer.write({}, written.append)
    writer.wait()
    assert written == [{}]


@pytest.mark.parametrize("error", [None, InputError("loss"), KeyboardInterrupt(), SystemExit(2)])
def test_what_was_begun_is_done_however_the_block_ends(gate, error):
    done = []

    def slow(payload: dict) -> None:
        assert gate.wait(LIMIT)
        done.append(payload)

    def block() -> None:
        with finished():
            Writer().write({}, slow)
            threading.Timer(0.1, gate.set).start()
            if error:
                raise error

    if error:
        with pytest.raises(type(error)) as raised:
            block()
        assert raised.value is error
    else:
        block()
    assert done == [{}]


@pytest.mark.parametrize("error", [None, RuntimeError("something else")])
def test_a_write_that_fails_is_the_error_of_the_block(error):
    with pytest.raises(InputError, match=r"^disk full$") as raised, finished():
        Writer().write({}, failing)
        if error:
            raise error
    assert raised.value.__context__ is error


def test_a_block_waits_for_its_own_writers_only(gate):
    with finished():
        outer = Writer()
        outer.write({}, lambda _: gate.wait(LIMIT))
        with finished():
            Writer().write({}, lambda _: None)
        assert not outer.begun.done()
        gate.set()
    assert outer.begun is None


def test_a_copy_is_of_plain_types_on_the_host_in_the_memory_order_of_the_original():
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    payload = OrderedDict(weight=weight, rng=(3, (1, 2), None), names=["a"])
    copy = copied(payload)
    assert type(copy) is dict and (copy["rng"], copy["names"]) == ((3, (1, 2), None), ["a"])
    assert torch.equal(copy["weight"], weight) and not copy["weight"].requires_grad
    assert copy["weight"].stride() == weight.stride()
    assert copy["weight"].data_ptr() != weight.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_of_what_is_on_a_gpu_is_whole_when_it_is_there():
    weight = torch.zeros(2**24, device="cuda")
    for number in range(20):
        weight.fill_(number)
        copy = copied({"weight": weight})["weight"]
        weight.fill_(-1)
        assert copy.device.type == "cpu" and bool((copy == number).all())
