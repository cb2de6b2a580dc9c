"""The demo's patients on their way into vaults: each opens to what was written, and nothing plain stays."""

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from cordon.broker.gate import Receipt
from cordon.data import vault
from cordon.data.source import VaultSource
from cordon.demo import key_releases, kits, samples, wdbc
from cordon.errors import ConfigError
from cordon.flare import poc_broker
from fakes.federation_kits import make_kits

SITE = "hospital-a"
MEMBERS = {
    "fhir": ["Condition.ndjson", "Observation.ndjson", "Patient.ndjson"],
    "sql": ["ehr.sqlite"],
    "omop": ["condition_occurrence.csv", "measurement.csv", "person.csv"],
    "csv": ["patients.csv"],
}


@pytest.fixture(scope="module")
def split():
    return wdbc.split(0)


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def told(monkeypatch):
    """(site, stamp, key) that a broker was given; none is there."""
    given = []
    monkeypatch.setattr(poc_broker, "register", lambda folder, site, stamp, key, now: given.append((site, stamp, key)))
    return given


def kit_of(folder, form, monkeypatch):
    data = SimpleNamespace(connector=form, vault="../data/patients.vault", unsafe_source=None)
    policy = SimpleNamespace(data=data, resolve=lambda base, path: (base / path).resolve())
    monkeypatch.setattr(kits, "site_policy", lambda kit: policy)
    return folder / "kit"


@pytest.mark.parametrize("form", ["fhir", "sql", "omop", "csv", "pdf"])
def test_a_vault_holds_what_was_written_and_nothing_plain_is_left(split, tmp_path, temporary, told, monkeypatch, form):
    target = kits.fill_kit(kit_of(tmp_path, form, monkeypatch), SITE, split, tmp_path / "broker")
    assert list(temporary.iterdir()) == []
    assert [path.name for path in target.parent.iterdir()] == ["patients.vault"]
    ((site, stamp, key),) = told
    plain = tmp_path / "plain" / kits.FILES.get(form, "")
    samples.write_hospital(SITE, form, plain, split.sites[SITE])
    numbers = samples.patient_ids(SITE, sorted(split.sites[SITE].patients))
    with vault.Vault(target, key, expect=stamp) as opened:
        names = VaultSource(opened).members()
        wanted = MEMBERS.get(form) or [f"{number}.pdf" for number in numbers]
        assert site == SITE and list(names) == wanted
        for name in names:
            with opened.open(name) as member:
                content = member.read()
            assert form == "sql" or content == (tmp_path / "plain" / name).read_bytes()
    data = target.read_bytes()
    assert not any(number.encode() in data for number in numbers)


def test_two_vaults_share_no_key_and_no_id(split, tmp_path, temporary, told, monkeypatch):
    for name in ("first", "second"):
        kits.fill_kit(kit_of(tmp_path / name, "csv", monkeypatch), SITE, split, tmp_path / "broker")
    (_, one, key), (_, two, other) = told
    assert key != other and one.vault != two.vault


def test_a_vault_that_no_broker_took_is_not_kept(split, tmp_path, temporary, monkeypatch):
    def refuse(*_):
        raise ConfigError("the disk is full")

    monkeypatch.setattr(poc_broker, "register", refuse)
    kit = kit_of(tmp_path, "csv", monkeypatch)
    with pytest.raises(ConfigError, match="the disk is full"):
        kits.fill_kit(kit, SITE, split, tmp_path / "broker")
    assert list((kit / "data").iterdir()) == [] and list(temporary.iterdir()) == []


def test_a_vault_that_is_there_is_not_overwritten(split, tmp_path, temporary, told, monkeypatch):
    kit = kit_of(tmp_path, "csv", monkeypatch)
    target = kits.fill_kit(kit, SITE, split, tmp_path / "broker")
    before = target.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        kits.fill_kit(kit, SITE, split, tmp_path / "broker")
    assert target.read_bytes() == before and len(told) == 1 and list(temporary.iterdir()) == []


def test_sample_data_fills_every_kit_of_a_workspace(tmp_path):
    """``cordon sample-data``: vaults, their keys at the broker, and the public reference set."""
    folder = tmp_path / "p" / "prod_00"
    made = make_kits(tmp_path / "made", (SITE, "hospital-b"), vaults=(SITE,))
    for name in ("server", SITE, "hospital-b"):
        shutil.copytree(made / name, folder / name)
        shutil.rmtree(folder / name / "data")
    shutil.copytree(made / poc_broker.FOLDER, tmp_path / "p" / poc_broker.FOLDER)
    said = list(kits.fill_kits(tmp_path, 0))
    assert [line.split(": ")[0] for line in said] == [SITE, "hospital-b", "server"]
    filled = [Path(line.split(": ")[1]).name for line in said]
    assert filled == ["patients.vault", "patients.csv", "reference.csv"]
    stamp = vault.stamp_of(folder / SITE / "data" / "patients.vault")
    with (
        poc_broker.opened(tmp_path / "p" / poc_broker.FOLDER, SITE, datetime.now(UTC)) as broker,
        pytest.raises(ConfigError, match="registered with another key"),
    ):
        broker.register(stamp, bytes(32), datetime.now(UTC))


def receipt(seq, decision, lease="", **changes):
    empty = dict.fromkeys(("detail", "evidence_sha256", "request_sha256", "policy_digest", "previous"), "")
    judged = {"evidence_type": "software", "verdict": "pass", "codes": (), "not_checked": ()}
    facts = {"v": 1, "tenant": SITE, "time": datetime.now(UTC), "seq": seq, "job": "j", **empty, **judged}
    facts |= {"decision": decision, "lease": lease}
    return Receipt(**{**facts, **changes})


def test_receipts_in_numbers():
    found = key_releases.of_receipts(
        [
            receipt(1, "released", "one"),
            receipt(2, "lease_revoked"),
            receipt(3, "released", "two"),
            receipt(4, "lease_revoked"),
            receipt(5, "evidence_refused", evidence_type="snp"),
        ]
    )
    assert (found.released, found.leases, found.evidence) == (2, 2, ("software",))
    assert found.refused == {"evidence_refused": 1, "lease_revoked": 2}
    nothing = key_releases.of_receipts([])
    assert (nothing.released, nothing.leases, nothing.refused, nothing.evidence) == (0, 0, {}, ())
