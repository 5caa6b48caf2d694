"""The table of networks: each is converted, compared, rejuvenated and merged, in its own process.

python -m tests.networks --cores 2             all that have no row yet, then the page
python -m tests.networks --only 'timm:res*'    those of a pattern
python -m tests.networks --again --only ...    those that have a row too
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from fnmatch import fnmatchcase
from multiprocessing import connection
from pathlib import Path

import torch

from tests.networks.measuring import machine, measured, works
from tests.networks.names import make, networks
from tests.networks.page import PAGE, ROWS, read_rows, write_page

FORK = multiprocessing.get_context("fork")  # what is imported here is imported once


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cores", type=int, default=1, help="networks at once, each on one thread")
    add("--only", default="*", metavar="PATTERN", help="names, such as 'timm:*vovnet*'")
    add("--again", action="store_true", help="those that have a row already, too")
    add("--rows", type=Path, default=ROWS, help="file of the rows, one JSON object a line")
    add("--page", type=Path, default=PAGE, help="page whose table is written")
    add("--seconds", type=float, default=600, help="time limit of a network")
    add("--gigabytes", type=float, default=16, help="memory limit of a network")
    args = parser.parse_args(argv)
    if args.cores < 1:
        parser.error(f"--cores {args.cores}: at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    known = {} if args.again else read_rows(args.rows)
    names = [n for n in networks() if fnmatchcase(n, args.only) and n not in known]
    if any(name.startswith("timm:") for name in names):
        try:
            import timm  # noqa: F401  (for the processes that are forked)
        except ImportError:
            print("timm is not installed: its networks are left out", file=sys.stderr)
            names = [name for name in names if not name.startswith("timm:")]
    torch.set_num_threads(1)
    run(names, args)
    write_page(read_rows(args.rows), args.page)
    return 0


def run(names: list[str], args: argparse.Namespace) -> None:
    """A row for each name, added to the file as soon as it is known."""
    left, running = list(names), {}
    while left or running:
        while left and len(running) < args.cores:
            name = left.pop(0)
            reader, writer = FORK.Pipe(duplex=False)
            process = FORK.Process(target=child, args=(name, writer, args.gigabytes), daemon=True)
            process.start()
            writer.close()
            running[reader] = (name, process, time.monotonic() + args.seconds)
        first = min(deadline for *_, deadline in running.values())
        ready = connection.wait(list(running), timeout=max(0.0, first - time.monotonic()))
        for reader, (name, process, deadline) in list(running.items()):
            if reader in ready or time.monotonic() >= deadline:
                row = received(name, reader, process, args)
                del running[reader]
                with args.rows.open("a") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                said = "works" if works(row) else row["reason"] or "differs"
                print(f"{name}: {said} ({len(left) + len(running)} left)", flush=True)


def received(name: str, reader: connection.Connection, process, args) -> dict:
    """The row that a process sent, or why it sent none."""
    row = None
    if reader.poll():
        try:
            row = reader.recv()
        except EOFError:  # it was killed
            row = None
    late = row is None and process.is_alive()
    if row is None:
        process.kill()
    process.join()
    why = f"more than {args.seconds:g} s" if late else f"died (exit {process.exitcode})"
    return (row or {"name": name, "reason": why}) | {"machine": machine()}


def child(name: str, writer: connection.Connection, gigabytes: float) -> None:
    """Measure one network within its memory."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    writer.send(measured(name, make))
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
