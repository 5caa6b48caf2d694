"""What signals do, put back after a block."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept(*signals: int) -> Iterator[None]:
    """After the block ``signals`` do what they did before it, as a notebook expects.

    In other threads than the main one Python lets nobody change that.
    """
    before = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items() if in_main_thread() else ():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
