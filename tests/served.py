"""Imported by the server of forks alone: what they then need not do again."""

import tests.machine.nodes  # noqa: F401
from tests.made import make_at_once

make_at_once()
