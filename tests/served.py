"""Imported by the server of forks alone: what they then need not do again."""

import gc

import pytest  # noqa: F401

import tests.study.scheduler  # noqa: F401
from tests.benchmark import settings
from tests.made import make_at_once

make_at_once()
settings.THREADS = 1  # OpenMP gives a fork no more
gc.freeze()  # or each fork looks through all that is here, and so copies its memory
