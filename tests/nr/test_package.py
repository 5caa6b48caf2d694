"""pip install . installs nr, by itself."""

import zipfile

import pytest

import nr
from tests import packaging
from tests.running import ROOT

tomllib = pytest.importorskip("tomllib")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_configuration_names_nr_alone():
    assert CONFIG["build-system"]["build-backend"] == "setuptools.build_meta"
    assert CONFIG["tool"]["setuptools"]["packages"] == ["nr"]
    assert CONFIG["project"]["dependencies"] == ["torch>=2.6"]
    assert CONFIG["project"]["name"] == "nr"
    assert CONFIG["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nr.__version__"}


def test_every_exported_name_is_there():
    assert all(hasattr(nr, name) for name in nr.__all__)
    assert {"ConvBN", "Chain", "Residual", "Concat", "Classifier", "Network"} <= set(nr.__all__)


def test_a_wheel_holds_nr_and_nothing_else(tmp_path):
    source = packaging.copied(tmp_path / "source")
    if missing := packaging.pip("wheel", *packaging.OFFLINE, "--wheel-dir", tmp_path, source):
        pytest.skip(missing)
    (wheel,) = tmp_path.glob("nr-*.whl")
    held = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    version = f"nr-{nr.__version__}.dist-info"
    assert held == {"nr", version}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nr/")}
    assert found == {f"nr/{path.name}" for path in (ROOT / "nr").glob("*.py")}
