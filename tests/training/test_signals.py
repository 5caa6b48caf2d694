"""training.signals: the first signal is remembered, a second one acts at once."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.running import handlers_put_back
from utils.training.signals import SIGNALS, Stopped, StopRequest, put_back


@pytest.fixture(autouse=True)
def handlers():
    with handlers_put_back():
        yield


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_is_remembered_and_the_second_is_the_systems(signum):
    stop = StopRequest()
    assert stop.agreed() == 0
    os.kill(os.getpid(), signum)
    assert stop.signum == stop.agreed() == signum
    assert [signal.getsignal(other) for other in SIGNALS] == [signal.SIG_DFL] * 3


def test_a_hang_up_that_nohup_has_turned_off_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.agreed() == 0
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed() == signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_thread_of_a_notebook_has_no_signals_and_runs_without():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with ThreadPoolExecutor() as threads:
        stop = threads.submit(StopRequest).result(timeout=60)
        threads.submit(lambda: put_back().__enter__()).result(timeout=60)
    assert stop.agreed() == 0
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_signals_do_again_what_they_did():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with put_back():
        StopRequest()
        assert [signal.getsignal(signum) for signum in SIGNALS] != before
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_stop_names_its_signal():
    assert str(Stopped(signal.SIGTERM)) == "SIGTERM"
    assert Stopped(signal.SIGINT).signum == 2
