"""Pictures by processes that have not imported matplotlib before; torch they import once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

DRAWING = """
import json, os, sys
from pathlib import Path
import utils.files  # and torch with it
assert not {"matplotlib", "utils.shown"} & {*sys.modules}
for name, environment in json.loads(sys.argv[1]).items():
    if os.fork():
        status = os.waitstatus_to_exitcode(os.wait()[1])
        assert not status, f"{name}: {status}"
        continue
    os.environ.update(environment)
    from utils.shown import plots
    plots.widths([("features.a", 8, 3, 7)], Path(name))
    seen = [os.environ.get("MPLBACKEND"), *sys.modules]
    Path(name + ".json").write_text(json.dumps(seen))
    os._exit(0)
"""
NOTEBOOK = {"JPY_PARENT_PID": "1"}
BACKENDS = {
    "none": None,
    "inline": "module://matplotlib_inline.backend_inline",
    "nonsense": "nonsense",
}
NOT_BARE = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", *NOTEBOOK)


@pytest.fixture(scope="module")
def drawn_afresh(tmp_path_factory) -> dict[str, tuple[Path, str | None, set[str]]]:
    """A picture, MPLBACKEND behind it and what was imported for it, without a display.

    By name of what MPLBACKEND was before; in a notebook, where it was anything.
    """
    folder = tmp_path_factory.mktemp("pictures")
    cases = {
        str(folder / name): NOTEBOOK | {"MPLBACKEND": backend} if backend else {}
        for name, backend in BACKENDS.items()
    }
    words = [sys.executable, "-c", DRAWING, json.dumps(cases)]
    bare = {name: value for name, value in os.environ.items() if name not in NOT_BARE}
    subprocess.run(words, cwd=ROOT, env=bare, check=True, timeout=120)
    found = {}
    for name in BACKENDS:
        backend, *modules = json.loads((folder / f"{name}.json").read_text())
        found[name] = folder / name, backend, {*modules}
    return found


@pytest.mark.parametrize("name", ["inline", "nonsense"])
def test_pictures_need_no_backend_of_a_notebook(name, drawn_afresh):
    picture, backend, _ = drawn_afresh[name]
    assert backend == BACKENDS[name]
    assert picture.stat().st_size > 1000


def test_neither_pyplot_nor_a_display_is_touched(drawn_afresh):
    picture, _, modules = drawn_afresh["none"]
    assert "utils.shown.plots" in modules
    assert not {"matplotlib.pyplot", "tkinter"} & modules
    assert picture.exists()
