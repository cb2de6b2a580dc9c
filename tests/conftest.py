"""Fixtures that tests of every kind share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of known-answer vectors, which is kept outside the repository."""
    folder = os.environ.get("CORDON_VECTORS")
    if not folder:
        pytest.skip("set CORDON_VECTORS to the vectors folder to run this test")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"CORDON_VECTORS is {folder!r}, which is no folder")
    return path


@pytest.fixture(autouse=True)
def _no_variable_leaks() -> Iterator[None]:
    """A pin that one test leaves behind would stop the kits of all that follow, and FLARE's processes with them."""
    before = {name: value for name, value in os.environ.items() if name.startswith("CORDON_")}
    yield
    assert before == {name: value for name, value in os.environ.items() if name.startswith("CORDON_")}
