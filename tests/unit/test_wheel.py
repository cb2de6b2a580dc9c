"""The wheel, built as a release builds it: package cordon with its specifications, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("uv_build", reason="the build backend is not installed: requirements/dev.txt has it")

BUILD = "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))"
DIST_INFO = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def build(root: Path, target: Path) -> Path:
    """Without network and without an environment of its own: the backend has no dependency."""
    scripts = str(Path(sys.executable).parent)  # where the backend's program lies
    env = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]), "UV_OFFLINE": "1"}
    target.mkdir()
    command = [sys.executable, "-c", BUILD, str(target)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repo_root, tmp_path_factory.mktemp("wheel") / "dist")


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, repo_root: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    names = {name for name in held if not name.endswith("/")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/", 1)[1] for name in info} == DIST_INFO
    sources = repo_root / "custom"
    files = {path.relative_to(sources) for path in (sources / "cordon").rglob("*") if path.is_file()}
    wanted = {str(path) for path in files if "__pycache__" not in path.parts and path.suffix not in (".pyc", ".pyo")}
    assert names - info == wanted
    assert {name.split("/")[0] for name in names - info} == {"cordon"}
    assert not [name for name in names if {"tests", "jobs", "docker", "__pycache__"} & set(name.split("/"))]


def test_every_sub_package_brings_its_specification(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name.rsplit("/", 1)[0] for name in names if name.endswith("/__init__.py")} - {"cordon"}
    assert {"cordon/dp", "cordon/flare", "cordon/report"} <= packages
    assert [package for package in sorted(packages) if f"{package}/README.md" not in names] == []
    assert "cordon/report/report.html.j2" in names


def test_the_same_tree_gives_the_same_bytes(wheel: Path, repo_root: Path, tmp_path: Path) -> None:
    """Hospitals approve the wheel's digest."""
    assert build(repo_root, tmp_path / "dist").read_bytes() == wheel.read_bytes()
