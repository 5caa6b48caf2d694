"""data.pillow: a ramp from black to white in every mode that files have, opened from its file."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tests.image_files import message, write
from utils.data import photographs

RAMP = np.linspace(0, 1, 16)[None].repeat(4, 0)  # [H, W], black to white
EIGHT = np.rint(RAMP * 255).astype(np.uint8)
SIXTEEN = np.rint(RAMP * 65535).astype(np.uint16)
COLOURS = np.stack([EIGHT, EIGHT[:, ::-1], EIGHT // 2], -1)  # [H, W, 3]
ROUNDING = 1  # pixel values that a conversion may be off
JPEG = 14  # pixel values that a JPEG of this ramp is off


def grey(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


def colours(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(COLOURS).convert(mode).save(path)


def with_alpha(mode: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(EIGHT if mode == "LA" else COLOURS)
        image.putalpha(Image.fromarray(255 - EIGHT))
        assert image.mode == mode
        image.save(path)

    return save


def pgm(largest: int) -> Callable[[Path], None]:
    """A portable grey map of 16 bits, of which it uses those up to ``largest``."""
    header = f"P5\n16 4\n{largest}\n".encode()
    return lambda path: path.write_bytes(header + np.rint(RAMP * largest).astype(">u2").tobytes())


def png(colour_type: int, channels: int) -> Callable[[Path], None]:
    """A PNG of 16 bits a channel, which PIL cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    def save(path: Path) -> None:
        rows = np.stack([SIXTEEN.astype(">u2")] * channels, -1)
        data = b"".join(b"\0" + row.tobytes() for row in rows)
        header = struct.pack(">IIBBBBB", 16, 4, 16, colour_type, 0, 0, 0)
        parts = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))

    return save


def big_endian(path: Path) -> None:
    Image.frombytes("I;16B", (16, 4), SIXTEEN.astype(">u2").tobytes()).save(path)


GREY = np.stack([EIGHT] * 3, -1)
BLACK_OR_WHITE = np.where(GREY > 127, 255, 0)
# Name of the file, mode that PIL opens it in, how it is made, the RGB it means, tolerance.
READ = [
    ("16-bit.png", "I;16", grey(SIXTEEN), GREY, ROUNDING),
    ("16-bit.tif", "I;16", grey(SIXTEEN), GREY, ROUNDING),
    ("big-endian.tif", "I;16B", big_endian, GREY, ROUNDING),
    ("16-bit.pgm", "I", pgm(65535), GREY, ROUNDING),
    ("10-bit.pgm", "I", pgm(1023), GREY, ROUNDING),
    ("16-bit-colour.png", "RGB", png(2, 3), GREY, ROUNDING),
    ("16-bit-grey-alpha.png", None, png(4, 2), GREY, ROUNDING),
    ("16-bit-alpha.png", "RGBA", png(6, 4), GREY, ROUNDING),
    ("float.tif", "F", grey(RAMP.astype(np.float32)), GREY, ROUNDING),
    ("grey.png", "L", grey(EIGHT), GREY, 0),
    ("grey.jpg", "L", grey(EIGHT), GREY, JPEG),
    ("bits.png", "1", grey(EIGHT > 127), BLACK_OR_WHITE, 0),
    ("colour.png", "RGB", colours("RGB"), COLOURS, 0),
    ("palette.png", "P", colours("P"), COLOURS, 51),  # a step of the web palette, dithered
    ("grey-alpha.png", "LA", with_alpha("LA"), GREY, 0),
    ("alpha.png", "RGBA", with_alpha("RGBA"), COLOURS, 0),
    ("alpha.tif", "RGBA", with_alpha("RGBA"), COLOURS, 0),
    ("print.jpg", "CMYK", colours("CMYK"), COLOURS, JPEG),
    ("print.tif", "CMYK", colours("CMYK"), COLOURS, ROUNDING),
    ("video.tif", "YCbCr", colours("YCbCr"), COLOURS, 3),
]
REFUSED = [
    ("32-bit.tif", grey(SIXTEEN.astype(np.int32)), "32-bit integers of no known range"),
    ("255.tif", grey(255 * RAMP.astype(np.float32)), "pixels from 0 to 255, must be from 0 to 1"),
    ("signed.tif", grey(2 * RAMP.astype(np.float32) - 1), "pixels from -1 to 1, must be"),
    ("nan.tif", grey(np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32)), "from nan to nan"),
]


def listed(root: Path, name: str, save: Callable[[Path], None]) -> photographs.Photographs:
    """A set whose first image is the one that ``save`` writes."""
    for split in photographs.SPLITS:
        for label in ("a", "b"):
            write(root / split / label / "~.png", GREY)
    save(root / "train/a" / name)
    train, _ = photographs.load_imagenet(str(root), 16)
    assert train.files[0] == str(root / "train/a" / name).encode()
    return train


@pytest.mark.parametrize(
    ("name", "mode", "save", "wanted", "off"), READ, ids=[row[0] for row in READ]
)
def test_every_mode_is_scaled_to_its_range(tmp_path, name, mode, save, wanted, off):
    train = listed(tmp_path, name, save)
    with Image.open(tmp_path / "train/a" / name) as image:
        assert mode in (None, image.mode)  # of grey with alpha it depends on PIL's version
    found = train.image(0)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - wanted).max() <= off


@pytest.mark.parametrize(("name", "save", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_pixels_of_no_known_range_are_refused_naming_the_file(tmp_path, name, save, words):
    train = listed(tmp_path, name, save)
    text = message(train.image, 0)
    assert text.startswith(f"{tmp_path / 'train/a' / name}: ") and words in text


def test_it_reaches_the_screen_from_a_worker(tmp_path):
    train = listed(tmp_path, *REFUSED[0][:2])

    def epoch() -> list[Tensor]:
        return list(photographs.TrainBatches(train, 3, 1, 1, "cpu").epoch(0))

    assert message(epoch).startswith(f"{tmp_path / 'train/a/32-bit.tif'}: ")
