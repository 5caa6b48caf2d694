"""Image files for the tests, and the one line of an InputError."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import InputError


def pixels_of(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Random pixels, uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def message(call, *args, **options) -> str:
    """The text of the InputError that ``call`` raises: always one line."""
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    text = str(caught.value)
    del caught  # or its traceback keeps what it has seen, worker processes too, until a collection
    assert "\n" not in text
    return text
