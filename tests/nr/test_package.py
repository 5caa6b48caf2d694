"""pip install . installs nr, by itself."""

import subprocess
import sys
import zipfile

import pytest

import nr
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
    """Built from a copy, so that no build folder is left; setuptools may be missing here."""
    modules = {f"nr/{path.name}" for path in (ROOT / "nr").glob("*.py")}
    source = tmp_path / "source"
    for name in (*modules, "pyproject.toml", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for other in ("models", "utils", "checkpoints"):
        (source / other).mkdir()
        (source / other / "__init__.py").write_text("")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.returncode and "setuptools" in result.stdout + result.stderr:
        pytest.skip("no setuptools here")
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("nr-*.whl")
    held = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    version = f"nr-{nr.__version__}.dist-info"
    assert held == {"nr", version}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nr/")}
    assert found == modules
