"""The flags of a run, which know which of them its command line has given."""

import argparse


class Flags(argparse.Namespace):
    """The flags of a run; ``given``: the names of those on its command line, no part of vars()."""

    __slots__ = ("given",)
    given: frozenset[str]


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> Flags:
    """The flags of a command line, which knows which of them it has been given."""
    args, unset = parser.parse_args(argv, Flags()), object()
    again = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.given = frozenset(name for name, value in vars(again).items() if value is not unset)
    return args
