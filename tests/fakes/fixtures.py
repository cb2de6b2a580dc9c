"""Fixtures over the fakes; a conftest imports the ones that its tests use."""

import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cordon import documents, signing
from cordon.flare import admission, entry, executors, masked_run, run, sealed_run, session

from .federation_kits import HOSPITALS, make_kits
from .in_process import Clock, Federation, Hand, Site, job_files, masked_files

FIVE = (*HOSPITALS, "hospital-e")
TEN = tuple(f"hospital-{letter}" for letter in "abcdefghij")
NINE = TEN[:9]


@pytest.fixture(scope="session")
def made_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a coordinator and four hospitals; not to be changed."""
    return make_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kits(made_kits: Path, tmp_path: Path) -> Path:
    """A copy of the kits for one test to use and to break."""
    return Path(shutil.copytree(made_kits, tmp_path / "kits"))


@pytest.fixture(scope="session")
def made_nine_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a coordinator and nine hospitals; not to be changed."""
    return make_kits(tmp_path_factory.mktemp("nine_kits"), NINE)


@pytest.fixture
def masked_kits(made_five_kits: Path, tmp_path: Path) -> Path:
    """A copy of kits of a coordinator and five hospitals for one test to use and to break."""
    return Path(shutil.copytree(made_five_kits, tmp_path / "masked"))


@pytest.fixture(scope="session")
def made_five_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a coordinator and five hospitals; not to be changed."""
    return make_kits(tmp_path_factory.mktemp("five_kits"), FIVE)


_parse = functools.lru_cache(maxsize=256)(documents.parse)
_load_private_key = functools.lru_cache(maxsize=64)(signing.load_private_key)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes are parsed once: reading YAML and RSA keys is most of the time that a short job takes."""

    def parse(data: bytes, schema: Any, name: str) -> Any:
        return copy.deepcopy(_parse(data, schema, name)) if schema is dict else _parse(data, schema, name)

    monkeypatch.setattr(documents, "parse", parse)
    monkeypatch.setattr(signing, "load_private_key", _load_private_key)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of controller and executors; it stands still unless somebody waits."""
    made = Clock()
    for module in (admission, entry, run, sealed_run, masked_run, executors, session):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def federate(kits: Path, clock: Clock, remembered: None) -> Callable[..., Federation]:
    """Makes a federation of all kits that runs ``jobs/oncology`` with some arguments changed."""

    def make(at_once: int = 1, folder: Path | None = None, **controller: Any) -> Federation:
        return Federation(folder or kits, job_files(controller), clock, at_once=at_once)

    return make


@pytest.fixture
def aggregate(masked_kits: Path, clock: Clock, remembered: None) -> Callable[..., Federation]:
    """Makes a federation of five hospitals that runs ``jobs/oncology_masked`` with some arguments changed."""

    def make(
        at_once: int = 5,
        folder: Path | None = None,
        masked: dict[str, Any] | None = None,
        executor: dict[str, Any] | None = None,
        hospitals: tuple[str, ...] = FIVE,
        **controller: Any,
    ) -> Federation:
        files = masked_files(masked, executor, **controller)
        return Federation(folder or masked_kits, files, clock, hospitals, at_once)

    return make


@pytest.fixture
def hand(kits: Path, clock: Clock, remembered: None) -> Callable[..., Hand]:
    """Makes a coordinator played by hand, facing hospital-a."""

    def make(folder: Path | None = None, executor: dict[str, Any] | None = None, **controller: Any) -> Hand:
        files = job_files(controller, executor)
        return Hand(Site(folder or kits, "hospital-a", files), folder or kits, files)

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each round that any site begins to train."""
    rounds: list[int] = []
    train = executors.train_round

    def counted(*args: Any, **kwargs: Any) -> Any:
        rounds.append(len(rounds) + 1)
        return train(*args, **kwargs)

    monkeypatch.setattr(executors, "train_round", counted)
    return rounds
