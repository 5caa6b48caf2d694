"""The data folders of the study: unpacked from an archive, and held-out training images."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

from utils.data.images import ImageSet
from utils.errors import InputError

TRAINING = 4000  # held-out pilots: of each class, the first as `train`, the others as `test`


def made_whole(folder: Path, fill: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``fill`` under another name and renamed, if it is not there yet."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a study that was killed in here
        temporary.mkdir()
        fill(temporary)
        os.rename(temporary, folder)
    return folder


def made_folder(folder: Path, archive: Path | None) -> Path:
    """``folder``, unpacked from ``archive`` if it is not there. InputError where it cannot be."""
    if archive:
        return unpack(archive, folder)
    missing = [name for name in ("train", "test") if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"--data {folder}: no folder {missing[0]}/ in it: name one with train/<class>/* and"
            " test/<class>/*, an --archive to unpack there, or cifar10, which is downloaded"
        )
    return folder


def unpack(archive: Path, folder: Path) -> Path:
    """The images of ``archive`` (train/ and test/) in ``folder``. InputError where it is broken."""

    def fill(temporary: Path) -> None:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise InputError(f"--archive {archive}: cannot be unpacked: {error}") from error
        missing = [name for name in ("train", "test") if not (temporary / name).is_dir()]
        if missing:
            raise InputError(f"--archive {archive}: no folder {missing[0]}/ in it")

    return made_whole(folder, fill)


def hold_out(data: Path, folder: Path, training: int = TRAINING) -> Path:
    """``folder``: links to ``data``/train only, the last images of each class as its test set."""

    def fill(temporary: Path) -> None:
        for images in sorted(path for path in (data / "train").iterdir() if path.is_dir()):
            files = sorted(images.iterdir())
            for split, part in (("train", files[:training]), ("test", files[training:])):
                target = temporary / split / images.name
                target.mkdir(parents=True)
                for file in part:
                    (target / file.name).symlink_to(file.resolve())

    return made_whole(folder, fill)


def hold_out_of(images: ImageSet, folder: Path, training: int = TRAINING) -> Path:
    """``folder``, as ``hold_out`` makes it, of training images that are in memory: PNG files."""

    def fill(temporary: Path) -> None:
        for label, name in enumerate(images.classes):
            chosen = images.images[images.labels == label]  # [n, 3, H, W]
            for number, pixels in enumerate(chosen):
                target = temporary / ("train" if number < training else "test") / name
                target.mkdir(parents=True, exist_ok=True)
                to_pil_image(pixels).save(target / f"{number:04}.png")

    return made_whole(folder, fill)
