"""The images of -d synthetic, made once for every run of this process."""

from functools import cache

from utils.data import synthetic

make_synthetic = cache(synthetic.make_synthetic)


def make_at_once() -> None:
    """So that what is forked from this process has them."""
    synthetic.make_synthetic = make_synthetic
    for count, seed in zip((synthetic.TRAIN, synthetic.TEST), synthetic.SEEDS, strict=True):
        make_synthetic(count, seed)
