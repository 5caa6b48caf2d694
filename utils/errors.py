"""The one kind of error that a user can cause, and other errors in one line."""

from torch import Tensor


class InputError(Exception):
    """Bad input: the scripts print it as one line and exit 1."""


class DataError(InputError):
    """The next batch cannot be had, through no fault of what was trained before it.

    ``sums``: the figures [k, 4] of the k finished batches of the training epoch, if in one;
    ``saved``: whether the run was saved since.
    """

    sums: Tensor | None = None
    saved = False


def one_line(error: Exception) -> str:
    """The message of ``error`` without line breaks, its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
