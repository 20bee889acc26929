"""What the wheel installs: tritrack, all of it, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
FOLDERS = sorted({package.split(".")[1] for package in PACKAGES if "." in package})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that was built from a source archive, as an index serves both."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source") / "tritrack"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tritrack", *FOLDERS):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", source.parent, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = source.parent.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_nothing_but_tritrack_is_installed(wheel):
    folders = {name.partition("/")[0] for name in wheel}
    (info,) = folders - {"tritrack"}
    assert info.startswith("tritrack-")
    assert info.endswith(".dist-info")
    assert {Path(name).suffix for name in wheel if name.startswith("tritrack/")} == {".py", ".typed"}


@pytest.mark.slow
def test_all_of_tritrack_is_installed(wheel):
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package.replace(".", "/")).glob("*.py")
    }
    assert {"tritrack/py.typed", "tritrack/ensemble_repo/model.py", "tritrack/events/event.py"} < wheel
    assert modules == {name for name in wheel if name.startswith("tritrack/") and name.endswith(".py")}


def test_every_package_is_listed():
    """A new folder with Python files must be named in pyproject.toml to be installed."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("", *(p.name for p in (ROOT / "tritrack").iterdir() if p.is_dir()))
        for path in (ROOT / "tritrack" / folder).rglob("*.py")
    }
    assert found == set(PACKAGES)
