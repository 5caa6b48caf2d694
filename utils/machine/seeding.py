"""Seeds as functions of where a run stands."""

import hashlib
import random

import numpy as np
import torch

NETWORK, REJUVENATION, EPOCH, ORDER = range(4)  # what a derived seed is for


def mixed_seed(*parts: int) -> int:
    """One 64-bit seed from several numbers, such as (run seed, purpose, epoch)."""
    digest = hashlib.sha256(repr([int(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def seed_generators(*parts: int) -> None:
    """Seed Python's, numpy's and torch's generators (CPU and every GPU) from several numbers."""
    seed = mixed_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:  # without a GPU torch.manual_seed would keep a stack trace of every call, for later
        torch.default_generator.manual_seed(seed)
