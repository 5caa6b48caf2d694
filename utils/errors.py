"""The one kind of error that a user can cause."""


class InputError(Exception):
    """Bad input: the scripts print it as one line and exit 1."""
