"""The distribution neural-rejuvenation installs nr, by itself."""

import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nr
from tests import packaging
from tests.running import ENVIRONMENT, ROOT

tomllib = pytest.importorskip("tomllib")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
DISTRIBUTION = f"neural_rejuvenation-{nr.__version__}"


def test_the_configuration_names_nr_alone():
    assert CONFIG["build-system"]["build-backend"] == "setuptools.build_meta"
    assert CONFIG["tool"]["setuptools"]["packages"]["find"]["include"] == ["nr", "nr.*"]
    assert CONFIG["project"]["dependencies"] == ["torch>=2.6"]
    assert CONFIG["project"]["name"] == "neural-rejuvenation"
    assert CONFIG["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nr.__version__"}


def test_every_exported_name_is_there():
    assert all(hasattr(nr, name) for name in nr.__all__)
    assert {"ConvBN", "Chain", "Residual", "Concat", "Classifier", "Network"} <= set(nr.__all__)


@pytest.mark.parametrize("name", nr.__all__)
def test_what_is_exported_says_its_types(name):
    """Of functions, and of classes what is called of their own; neither Any nor a bare dict."""
    thing = getattr(nr, name)
    own = [vars(thing).get(key) for key in ("__init__", "forward", "step")]
    for call in filter(None, own) if isinstance(thing, type) else [thing]:
        signature = inspect.signature(call)
        found = {p.name: p.annotation for p in signature.parameters.values() if p.name != "self"}
        found["return"] = None if call.__name__ == "__init__" else signature.return_annotation
        untyped = [key for key, a in found.items() if a is inspect.Signature.empty]
        loose = [key for key, a in found.items() if "Any" in str(a) or a in (dict, list, tuple)]
        assert (untyped, loose) == ([], [])


def held(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_a_wheel_holds_nr_and_nothing_else(tmp_path):
    """With the rooms that nr may have, and the marker of its types."""
    source = packaging.copied(tmp_path / "source")
    (source / "nr" / "room").mkdir()
    (source / "nr" / "room" / "__init__.py").touch()
    if missing := packaging.pip("wheel", *packaging.OFFLINE, "--wheel-dir", tmp_path, source):
        pytest.skip(missing)
    names = held(tmp_path / f"{DISTRIBUTION}-py3-none-any.whl")
    assert {name.split("/")[0] for name in names} == {"nr", f"{DISTRIBUTION}.dist-info"}
    found = {name for name in names if name.startswith("nr/")}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nr").rglob("*.py")}
    assert found == code | {"nr/room/__init__.py", "nr/py.typed"}


SAYS = """
import importlib.metadata as metadata, nr
found = metadata.metadata("neural-rejuvenation")
assert found["Version"] == nr.__version__ and "import nr" in found.get_payload()
assert metadata.requires("neural-rejuvenation") == ["torch>=2.6"]
print(nr.__file__)
"""


def test_what_is_released_is_built_from_its_sources_and_installed(tmp_path):
    """The source distribution makes the wheel, and the wheel is what a user has."""
    source, site = packaging.copied(tmp_path / "source"), tmp_path / "site"
    if missing := packaging.source_distribution(source, tmp_path):
        pytest.skip(missing)
    archive = tmp_path / f"{DISTRIBUTION}.tar.gz"
    packaging.pip("wheel", *packaging.OFFLINE, "--wheel-dir", tmp_path, archive)
    wheel = tmp_path / f"{DISTRIBUTION}-py3-none-any.whl"
    packaging.pip("install", *packaging.OFFLINE, "--target", site, wheel)
    result = subprocess.run(
        [sys.executable, "-c", SAYS],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=packaging.LIMIT,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == site / "nr" / "__init__.py"


def test_every_page_names_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", changes, re.MULTILINE)[1] == nr.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == nr.__version__


def test_the_workflow_runs_the_oldest_of_the_bounds():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    oldest = CONFIG["project"]["requires-python"].removeprefix(">=")
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.replace(">=", "==") + ".*" for line in requirements if line.startswith("torch")]
    assert f'python: "{oldest}", pins: "{" ".join(pins)}"' in workflow


def test_the_page_for_people_who_join_can_be_read_at_once():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
