"""Class folders of images: listed, and those of CIFAR's size decoded and cached."""

import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch

from utils.data.images import IMAGE_SIZE, ImageSet
from utils.data.pillow import counted, image_kinds, kind_of, open_image, to_rgb
from utils.errors import InputError
from utils.machine import distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SPLITS = ("train", "test")  # of `folder`
FOLDER_IMAGE = f"RGB {IMAGE_SIZE}x{IMAGE_SIZE}"  # PIL mode and size of an image of `folder`
LEAST_CLASSES = 2  # of a data set, section 8
NAMED = 3  # classes that the test split lacks, before the others are only counted
# Folders that systems put beside those of the user: Synology, QNAP, macOS, Windows, Linux.
SYSTEM_FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "__MACOSX"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
STAT_THREADS = 16  # that ask for the sizes of files
LEFT_OVER = 24 * 3600  # seconds after which a write without a lock has ended
DECODE_CHUNK = 256  # images a decoding thread takes at a time; one by one costs half more


T = TypeVar("T")


class Listing(NamedTuple):
    """The files of a split, class after class, the label of each, and the folder of the split."""

    files: list[str]
    labels: list[int]
    folder: str


def list_splits(root: Path, splits: Sequence[str]) -> tuple[tuple[str, ...], list[Listing]]:
    """The classes of ``root``/<split>/<class>/*, sorted, and the images of each split.

    The first split decides the classes, at least two. The screen names those that another split
    lacks, and the kinds of files that Pillow does not read; hidden files and those of systems are
    passed over in silence. InputError naming the folder that is missing, empty, unreadable, a link
    to itself, or a class of another split only.
    """
    with system_errors_named(root):
        classes = class_folders(root, splits[0], splits)
        if len(classes) < LEAST_CLASSES:
            raise InputError(
                f"{root / splits[0]}: only one class folder ({classes[0]}) in it, "
                f"at least {LEAST_CLASSES} are needed"
            )
        passed: Counter[str] = Counter()
        listings = [list_images(root, split, classes, splits, passed) for split in splits]
    if passed:
        distributed.warn(f"Passed over in {root}: {counted(passed)}")
    return classes, listings


@contextmanager
def system_errors_named(root: Path) -> Iterator[None]:
    """An OSError of the block as an InputError with the file it is about."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or root}: {error.strerror or error}") from error


def class_folders(root: Path, split: str, splits: Sequence[str]) -> tuple[str, ...]:
    """Names of the class folders of a split, sorted; InputError where there are none."""
    folder = root / split
    rule = f"--data {root} must hold " + " and ".join(f"{name}/<class>/*" for name in splits)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {rule}")
    classes = tuple(entry.name for entry in visible(folder) if entry.is_dir())
    if not classes:
        raise InputError(f"{folder}: no class folders in it; {rule}")
    return classes


def list_images(
    root: Path, split: str, classes: Sequence[str], splits: Sequence[str], passed: Counter[str]
) -> Listing:
    """The images of a split; InputError for a class folder that is empty or not in ``classes``.

    ``passed``: counts the kinds of files that are passed over.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    folder, known = root / split, root / splits[0]
    listing = Listing([], [], str(folder))
    names = class_folders(root, split, splits)
    passed.update(kind_of(entry.name) for entry in visible(folder) if not entry.is_dir())
    for name in names:
        if name not in label_of:
            raise InputError(f"{folder / name}: a class that {known} does not have")
        others: Counter[str] = Counter()
        files = images_below(folder, name, others)
        if not files:
            found = f", but {counted(others)}" if others else ""
            raise InputError(
                f"{folder / name}: no images (.jpg, .png or another kind that Pillow reads) in this"
                f" class folder{found}"
            )
        passed.update(others)
        listing.files.extend(files)
        listing.labels.extend([label_of[name]] * len(files))
    if lacking := [name for name in classes if name not in names]:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        distributed.warn(
            f"Warning: {folder} lacks {len(lacking)} of the {len(classes)} classes of {known}: "
            f"{', '.join(lacking[:NAMED])}{more}"
        )
    return listing


def visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in ``folder``, sorted by name, without hidden things and those of systems."""
    with os.scandir(folder) as entries:
        seen = [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    return sorted(seen, key=lambda entry: entry.name)


def images_below(folder: Path, name: str, others: Counter[str]) -> list[str]:
    """Image files at any depth of ``folder``/``name``, by folder, then by name.

    ``others``: counts the kinds of all other files. InputError naming a link to a folder above it.
    """
    found: list[tuple[str, str]] = []

    def walk(path: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(path)
        if real in above:
            raise InputError(f"{path}: a link to a folder that it lies in ({real})")
        for entry in visible(path):
            if entry.is_dir():
                walk(entry.path, (*above, real))
            elif kind_of(entry.name) in image_kinds():
                found.append((path, entry.name))
            else:
                others[kind_of(entry.name)] += 1

    top = Path(os.path.realpath(folder))
    walk(str(folder / name), tuple(map(str, (top, *top.parents))))
    return [os.path.join(*parts) for parts in sorted(found)]


def listed(folder: str, files: Sequence[str]) -> Iterator[bytes]:
    """Each of ``files`` by its path below ``folder`` and its size, for the digest of a data set.

    In threads, since a disk behind a network answers late. InputError for one that is gone.
    """

    def entries(start: int) -> bytes:
        part = files[start : start + DECODE_CHUNK]
        found = (f"{file.removeprefix(folder)}\0{os.stat(file).st_size}\n" for file in part)
        return os.fsencode("".join(found))

    with system_errors_named(Path(folder)):
        yield from in_chunks(entries, len(files), STAT_THREADS)


def load_folder(root: Path, workers: int) -> tuple[ImageSet, ImageSet]:
    """``root``/train/<class>/* and ``root``/test/<class>/*, RGB 32x32; labels are train's.

    InputError naming the folder or file that is missing, empty, broken or of another kind.
    """
    classes, listings = list_splits(root, SPLITS)
    sets = []
    for split, listing in zip(SPLITS, listings, strict=True):
        source, key = contents(root, listing.files, workers)
        cache = root / f".nr-cache-{split}-{key}.npz"
        remove_leftovers(root, split)
        images = read_cache(cache, len(listing.files))
        if images is None:
            images = decode_all(listing.files, workers)
            write_cache(cache, images, split)
        labels = torch.tensor(listing.labels)
        sets.append(ImageSet(torch.from_numpy(images), labels, classes, source))
    train, test = sets
    return train, test


def decode_all(files: Sequence[str], workers: int) -> np.ndarray:
    """All ``files``, uint8 [N, 3, 32, 32]; InputError for the first that is no 32x32 RGB."""
    images = np.empty((len(files), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)

    def fill(start: int) -> None:
        for index, file in enumerate(files[start : start + DECODE_CHUNK], start):
            images[index] = decode(file).transpose(2, 0, 1)

    in_chunks(fill, len(files), workers)
    return images


def in_chunks(work: Callable[[int], T], count: int, workers: int) -> list[T]:
    """``work`` of the first of each chunk of ``count`` files, by ``workers`` threads."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(work, range(0, count, DECODE_CHUNK)))


def decode(file: str) -> np.ndarray:
    """One image, uint8 [32, 32, 3]; InputError if it is broken, not RGB or of another size.

    A palette, which every GIF in colour has, is of RGB.
    """
    with open_image(file) as image:
        found = f"{image.mode} {image.width}x{image.height}"
        if found.replace("P ", "RGB ") == FOLDER_IMAGE:
            return np.asarray(to_rgb(image, file))
    raise InputError(f"{file}: the image is {found}, must be {FOLDER_IMAGE}")


def contents(root: Path, files: Sequence[str], workers: int) -> tuple[bytes, str]:
    """A digest of the paths below ``root`` and contents of ``files``, and the key of their cache.

    The key changes with their times as well. Times alone would not do: archives may fix them. To
    read and hash a file takes an eighth of the processor time of decoding it.
    """

    def entries(start: int) -> tuple[bytes, bytes]:
        part, times = [], []
        for file in files[start : start + DECODE_CHUNK]:
            with open(file, "rb", buffering=0) as opened:
                content = hashlib.sha256(opened.read()).hexdigest()
                times.append(os.fstat(opened.fileno()).st_mtime_ns)
            part.append(f"{file.removeprefix(str(root))}\0{content}\n")
        return os.fsencode("".join(part)), repr(times).encode()

    with system_errors_named(root):
        found = in_chunks(entries, len(files), workers)
    source, times = (b"".join(parts) for parts in zip(*found, strict=True))
    source = hashlib.sha256(source).digest()
    return source, hashlib.sha256(source + times).hexdigest()[:16]


def read_cache(cache: Path, count: int) -> np.ndarray | None:
    """The cached images, uint8 [count, 3, 32, 32], or None; npz keeps a checksum of them."""
    try:
        with np.load(cache) as content:
            images = content["images"]
    except Exception:  # not there, or damaged: zipfile and numpy have many kinds for that
        return None
    right = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return images if images.shape == right and images.dtype == np.uint8 else None


def write_cache(cache: Path, images: np.ndarray, split: str) -> None:
    """Write ``cache`` whole or, where the folder cannot be written, not at all; drop older ones."""
    temporary = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    with suppress(OSError):  # without a cache the next start decodes again
        try:
            with open(temporary, "xb") as file:
                hold(file)
                np.savez(file, images=images)
            os.replace(temporary, cache)
        finally:
            temporary.unlink(missing_ok=True)
        for other in cache.parent.glob(f".nr-cache-{split}-*.npz"):
            if other != cache:
                other.unlink(missing_ok=True)


def remove_leftovers(root: Path, split: str) -> None:
    """Remove what a process has left that was killed while it wrote a cache; none that lives."""
    for path in root.glob(f".nr-cache-{split}-*.npz.*"):
        with suppress(OSError), open(path, "r+b") as file:  # others' need not be removed
            if hold(file):
                path.unlink()


def hold(file: BinaryIO) -> bool:
    """Whether this process has a file to itself, until it is closed or the process ends.

    Where a system has no locks, it has every file that is older than a day.
    """
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return time.time() - os.fstat(file.fileno()).st_mtime > LEFT_OVER
    return True
