"""Files written whole or not at all; what nr says of one becomes the scripts' one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nr
from nr.files import archive
from utils.errors import InputError

# Plain data of a file or the flags: numbers, words, tensors, lists and dicts of them, by name.
Plain = dict[str, Any]


@contextmanager
def telling(kind: type[InputError] = InputError) -> Iterator[None]:
    """What nr says about a file, as the one line that the scripts print."""
    try:
        yield
    except nr.FileError as error:
        raise kind(str(error)) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all. Raises InputError naming the path."""
    with telling():
        archive.write_atomically(path, data)
