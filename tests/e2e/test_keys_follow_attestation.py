"""The demo's job in a POC federation with listeners in every process: who got which key, and what anybody else saw."""

import base64
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cordon import messages, sealed_model, study
from cordon.demo import key_releases, samples, wdbc
from cordon.demo.kits import fill_kits
from cordon.errors import PolicyRefused
from cordon.flare import poc, poc_broker, poc_documents
from cordon.flare.key_records import LEASES_FILE
from cordon.messages import LedgerHead
from cordon.report import events
from cordon.sealing import KemKey
from fakes.lead import PROJECT, Lead
from fakes.needles import WINDOW, DiskWatch, Needles, forms

MODEL_BYTES = 31 * 4
PLANTED = "planted by the test"


def of(log, kind):
    return [event for event in log if isinstance(event, kind)]


def until(condition, timeout_s, what):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


# -- the search itself -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(7).normal(size=31).astype(np.float32)


@pytest.mark.parametrize("shift", range(9))
@pytest.mark.parametrize("form", ["raw", "hex", "HEX", "base64", "urlsafe", "json"])
def test_the_search_finds_a_plaintext_in_every_form(numbers, form, shift):
    plain = numbers.tobytes()
    needles = Needles(dict.fromkeys(forms(plain), "secret"))
    around = np.random.default_rng(shift).bytes(1000 + shift)
    encoded = {
        "raw": around + plain + around,
        "hex": around + (around + plain).hex().encode(),
        "HEX": around + (around + plain).hex().upper().encode(),
        "base64": around + base64.b64encode(around + plain + around),
        "urlsafe": around + base64.urlsafe_b64encode(around + plain + around),
        "json": around + json.dumps([float(value) for value in numbers]).encode(),
    }[form]
    assert needles.found_in(encoded) == {"secret"}
    assert needles.found_in(around) == set()


def test_the_search_finds_what_is_there_for_a_moment_only(tmp_path, numbers):
    with DiskWatch([tmp_path], every_s=0.05) as watch:
        path = tmp_path / "deep" / "file"
        path.parent.mkdir()
        path.write_bytes(numbers.tobytes())
        until(lambda: path in watch.seen, 5, "never seen")
        path.write_bytes(b"something else")
        until(lambda: watch.seen[path] == b"something else", 5, "never seen again")
        path.unlink()
    needles = Needles(dict.fromkeys(forms(numbers.tobytes()), "secret"))
    assert [(where, needles.found_in(data)) for where, data in watch.everything()] == [
        (path, {"secret"}),
        (path, set()),
    ]


# -- the federation ----------------------------------------------------------------------------------------------------


@contextmanager
def tapped(folder):
    """A listener in every Python process that is started meanwhile."""
    for name in ("plain", "sealed"):
        (folder / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORDON_WIRETAP", str(folder))
        paths = [str(Path(__file__).parent / "wiretap"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


def stores(federation):
    """Where the coordinator keeps jobs and snapshots."""
    text = (federation.kit(federation.server) / "local" / "resources.json").read_text()
    tree = json.loads(text)
    uris = [each["args"]["uri_root"] for each in tree["components"] if each["id"] == "job_manager"]
    return [Path(uris[0]), Path(tree["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"])]


@pytest.fixture(scope="module")
def run(repo_root, tmp_path_factory, numbers):
    """jobs/oncology, from submission to download, and all that was seen meanwhile."""
    tap, folder = tmp_path_factory.mktemp("tap"), tmp_path_factory.mktemp("federation")
    federation = poc.prepare(repo_root / PROJECT, folder)
    assert len(list(fill_kits(federation.workspace, seed=0))) == 6
    planted = federation.temporary / "planted"
    with tapped(tap):
        try:
            federation.start()
            lead = Lead(federation)
            watch = DiskWatch([folder, *stores(federation)])
            with watch:
                job_id = lead.submit(Path(shutil.copytree(repo_root / "jobs" / "oncology", folder / "oncology")))
                log = federation.kit(federation.server) / job_id / events.EVENTS_FILE
                until(lambda: log.exists() and of(events.read(log), events.VersionMade), 120, "no version was made")
                planted.write_bytes(numbers.tobytes())
                until(lambda: planted in watch.seen, 10, "the watch sees nothing")
                planted.unlink()
                meta = lead.wait(job_id)
                result, done = lead.result(job_id, folder / "result")
            yield SimpleNamespace(
                federation=federation,
                lead=lead,
                tap=tap,
                watch=watch,
                job_id=job_id,
                meta=meta,
                result=result,
                log=done,
            )
        finally:
            federation.stop()
            assert federation.processes() == []


def holding(needles, watch):
    """(file, names of needles) for every content of a file that held some."""
    found = [(path, needles.found_in(data)) for path, data in watch.everything()]
    return [(path, names) for path, names in found if names]


def contract(federation):
    return study.load_signed(federation.kit(federation.server) / "local" / "study.yml", datetime.now(UTC))


@pytest.mark.poc
def test_data_are_in_vaults_and_nowhere_else(run):
    """No file below the federation's folder ever held a patient's number: those of the vaults' owners included."""
    split, federation = wdbc.split(0), run.federation
    ids = {
        key.encode(): site
        for site in federation.sites
        for key in samples.patient_ids(site, map(int, split.sites[site].patients))
    }
    assert len(ids) > 300
    needles = Needles(ids)
    assert needles.found_in(b"... " + next(iter(ids))) == {"hospital-a"}
    for site in federation.sites:
        vault = federation.kit(site) / "data" / "patients.vault"
        assert run.watch.seen[vault] == vault.read_bytes()
        assert [path.name for path in vault.parent.iterdir()] == ["patients.vault"]
    assert holding(needles, run.watch) == []


@pytest.mark.poc
def test_each_hospital_released_its_key_once_and_every_update_says_so(run):
    federation, agreed, now = run.federation, contract(run.federation), datetime.now(UTC)
    heads = {}
    for site in federation.sites:
        receipts, envelopes = key_releases.receipts(federation, site)  # verifies the chain
        mine = [each for each in receipts if each.job == run.job_id]
        assert {each.decision for each in mine} == {"released"} and {each.verdict for each in mine} == {"pass"}
        assert {each.evidence_type for each in mine} == {"software"}
        with poc_broker.opened(federation.broker, site, now) as broker:
            releases, epsilon = broker.spent()
            assert releases == 1 and 0 < epsilon < 4
            heads[site] = {(seq, head) for seq, _, head in broker.ledger_rows()}
        lines = [json.loads(line) for line in (federation.kit(site) / LEASES_FILE).read_text().splitlines()]
        assert lines[0]["decision"] == "released" and lines[0]["receipt"] in envelopes
    headers = [json.loads(line) for path in run.tap.glob("headers-*") for line in path.read_text().splitlines()]
    updates = [each for each in headers if each["kind"] == "UpdateHeader"]
    assert len(updates) >= 3 * 14
    for site in federation.sites:
        mine = [each for each in updates if f"/{site}" in each["site"]]
        assert mine, site
        for update in mine:
            head = messages.verify(update["ledger"], LedgerHead, agreed.hospital(site).broker_key, now)
            assert (head.seq, head.head) in heads[site]


@pytest.mark.poc
def test_the_model_opens_to_the_release_right_and_to_nobody_else(run):
    federation, path = run.federation, run.result / "model.sealed"
    header, model = sealed_model.open_file(path, [poc_documents.release_key(federation.state)])
    sealed_model.check_study(header, contract(federation))
    versions = of(run.log, events.VersionMade)
    assert len(versions) == 14 and versions[-1].sha256 == header.sha256 == messages.sha256(model)
    assert versions[-1].auc > 0.94
    with pytest.raises(PolicyRefused, match="not_a_holder"):
        sealed_model.open_file(path, [KemKey.generate()])
    holds_key = b"CORDON RELEASE PRIVATE KEY"
    assert [p for p, data in run.watch.everything() if holds_key in data] == [
        federation.state / poc_documents.KEYS / poc_documents.RELEASE_KEY
    ]


@pytest.mark.poc
def test_no_update_and_no_model_is_in_the_clear_on_the_wire_or_on_a_disk(run, numbers):
    """After TLS ends, and on every disk of the federation during the job: sealed bytes and nothing that they seal."""
    plain = {path.name: path.read_bytes() for path in (run.tap / "plain").iterdir()}
    sealed = {path.name: path.read_bytes() for path in (run.tap / "sealed").iterdir()}
    frames = {path: path.read_bytes() for path in run.tap.glob("frames-*")}
    headers = [json.loads(line) for path in run.tap.glob("headers-*") for line in path.read_text().splitlines()]
    assert len(frames) >= 12 and sum(map(len, frames.values())) > 100_000  # parents and the job's processes

    # 1. What must not be found: every update before it was sealed, every model but the public first one.
    assert all(len(data) == MODEL_BYTES for data in plain.values())
    secrets = {form: name for name, data in plain.items() for form in forms(data)}
    updates = of(run.log, events.Updated)
    assert len(set(secrets.values())) >= len(updates) + 14
    needles = Needles({**secrets, **dict.fromkeys(forms(numbers.tobytes()), PLANTED)})

    # 2. The search would find it: what the test put there, for a moment, was seen.
    assert holding(needles, run.watch) == [(run.federation.temporary / "planted", {PLANTED})]
    frame = next(iter(frames.values()))
    assert needles.found_in(frame + next(iter(plain.values())) + frame) == {next(iter(plain))}

    # 3. The wire was heard: every payload that an accepted update's header names went over it, sealed.
    sent = [each["payload_sha256"] for each in headers if each["kind"] == "UpdateHeader"]
    assert len(sent) >= len(updates) and all(messages.sha256(sealed[each]) == each for each in sent)
    passing = Needles({sealed[each][:WINDOW]: each for each in sent})
    heard = set().union(*(passing.found_in(data) for data in frames.values()))
    assert len(heard) >= len(updates) and heard <= set(sent)

    # 4. And nothing in the clear.
    assert {path.name: needles.found_in(data) for path, data in frames.items()} == {path.name: set() for path in frames}


@pytest.mark.poc
def test_a_hospital_whose_broker_revoked_the_job_trains_not_and_the_others_do(run, repo_root, tmp_path):
    federation, lead = run.federation, run.lead
    folder = Path(shutil.copytree(repo_root / "jobs" / "oncology", tmp_path / "oncology"))
    path = folder / "app" / "config" / "config_fed_server.json"
    config = json.loads(path.read_text())
    config["workflows"][0]["args"].update({"versions": 2, "rounds_per_site": 4, "ticket_timeout_s": 10.0})
    path.write_text(json.dumps(config))
    job_id = lead.submit(folder)
    with poc_broker.opened(federation.broker, "hospital-a", datetime.now(UTC)) as broker:
        broker.revoke(datetime.now(UTC), job=job_id)
    lead.wait(job_id)
    _, log = lead.result(job_id, tmp_path / "result")
    assert [(event.site, event.reason) for event in of(log, events.SiteRefused)] == [("hospital-a", "key_refused")]
    versions = of(log, events.VersionMade)
    assert len(versions) == 2 and all("hospital-a" not in version.sites for version in versions)
    receipts, _ = key_releases.receipts(federation, "hospital-a")
    assert {each.decision for each in receipts if each.job == job_id} == {"lease_revoked"}
    assert re.search(r"\"decision\": \"refused\", \"code\": \"lease_revoked\"", _lines(federation, "hospital-a"))


def _lines(federation, site):
    return (federation.kit(site) / LEASES_FILE).read_text()
