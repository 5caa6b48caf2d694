"""How a script ends: exit statuses and one line instead of a traceback."""

import sys
from collections.abc import Callable

from utils.errors import InputError
from utils.machine import distributed
from utils.machine.allocator import keep_freed_memory
from utils.training.signals import Stopped


def exit_status(main: Callable[[], int]) -> int:
    """Run ``main`` and return its status; 1 for bad input, 128 + signal for a stopped run."""
    keep_freed_memory()
    sys.stdout.reconfigure(line_buffering=True)  # a log file is up to date line by line
    try:
        return main()
    except InputError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\nStopped by {stopped}; the run is saved: go on with --resume auto")
        return 128 + stopped.signum
    finally:
        distributed.stop()
