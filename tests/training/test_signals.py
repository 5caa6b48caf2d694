"""training.signals: the first signal is remembered, a second one acts at once."""

import os
import signal

import pytest

from utils.training.signals import SIGNALS, Stopped, StopRequest


@pytest.fixture(autouse=True)
def handlers():
    """Put the signal handlers back."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_is_remembered_and_the_second_is_the_systems(signum):
    stop = StopRequest()
    assert stop.agreed() == 0
    os.kill(os.getpid(), signum)
    assert stop.signum == stop.agreed() == signum
    assert [signal.getsignal(other) for other in SIGNALS] == [signal.SIG_DFL] * 2


def test_a_stop_names_its_signal():
    assert str(Stopped(signal.SIGTERM)) == "SIGTERM"
    assert Stopped(signal.SIGINT).signum == 2
