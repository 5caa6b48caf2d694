"""nr as a user installs it, from a copy of the checkout, so that no build folder is left in it."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT

LIMIT = 300  # seconds
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


def copied(folder: Path) -> Path:
    """The checkout as far as pip looks at it; of the other packages only that they are there."""
    shutil.copytree(ROOT / "nr", folder / "nr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("models", "utils", "checkpoints"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    return folder


def pip(*words: str | Path) -> str | None:
    """Run pip with the setuptools that are here; why that is impossible, or None if it worked."""
    return _run("-m", "pip", *map(str, words))


def source_distribution(source: Path, target: Path) -> str | None:
    """Make that of ``source`` in ``target``; as ``pip``."""
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    return _run("-c", build, str(target), cwd=source)


def _run(*words: str, cwd: Path | None = None) -> str | None:
    result = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=LIMIT
    )
    said = result.stdout + result.stderr
    if result.returncode and ("setuptools" in said or "No module named pip" in said):
        return "no pip, or no setuptools, here"
    assert result.returncode == 0, said
    return None


def installed(folder: Path) -> Path:
    """A folder that holds what ``pip install .`` puts in an environment, and nothing else."""
    source, site = copied(folder / "source"), folder / "site"
    if pip("install", *OFFLINE, "--target", site, source):
        shutil.copytree(source / "nr", site / "nr")
    return site
