"""The job on a real POC federation: by console, by command line, refused, with broken sites, with a killed site."""

import hashlib
import io
import json
import re
import shutil
import threading
import time
from pathlib import Path

import pexpect
import pytest
from safetensors.numpy import load

from cordon import sealed_model
from cordon.data.vault import seal
from cordon.demo import samples, wdbc
from cordon.demo.kits import seal_into
from cordon.flare import poc_documents
from cordon.flare.persistor import MODEL_FILE
from cordon.flare.poc import LEAD
from cordon.report import events

pytestmark = pytest.mark.poc

SHORT = {"versions": 2, "rounds_per_site": 4, "ticket_timeout_s": 10.0}


def of(log, kind):
    return [event for event in log if isinstance(event, kind)]


def test_every_side_has_challenged_the_other(federation):
    deadline = time.monotonic() + 30
    wanted = {("server", site) for site in federation.sites} | {(site, "server") for site in federation.sites}
    passed: set[tuple[str, str]] = set()
    while passed != wanted and time.monotonic() < deadline:
        for by in ("server", *federation.sites):
            path = federation.kit(by) / "attestation.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            passed |= {(by, line["peer"]) for line in map(json.loads, lines) if line["verdict"] == "pass"}
        time.sleep(0.5)
    assert passed == wanted


def test_lead_trains_oncology_from_the_admin_console(federation, lead, repo_root, tmp_path):
    """Login, submit_job, list_jobs, download_job, bye: the real console, the committed job folder."""
    kit = federation.kit(LEAD)
    console = pexpect.spawn(
        str(kit / "startup" / "fl_admin.sh"),
        env=federation.environment(),
        cwd=str(federation.home),
        encoding="utf-8",
        timeout=60,
        dimensions=(50, 250),
    )
    try:
        console.expect("to login")
        console.expect("> ")
        console.sendline(f"submit_job {shutil.copytree(repo_root / 'jobs' / 'oncology', tmp_path / 'oncology')}")
        console.expect(r"Submitted job:\s+([0-9a-f-]{36})")
        job_id = console.match.group(1)
        console.expect("> ")
        console.sendline("list_jobs")
        console.expect(job_id)
        lead.wait(job_id)
        console.sendline(f"download_job {job_id}")
        console.expect(r"(?i)download.*?(/\S+)", timeout=60)
        console.expect("> ")
        console.sendline("bye")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)

    found = [path for path in kit.rglob("events.jsonl") if job_id in str(path)]
    assert found, f"download_job left no result under {kit}"
    log = events.read(found[0])
    _, model = sealed_model.open_file(found[0].parent / MODEL_FILE, [poc_documents.release_key(federation.state)])
    versions = of(log, events.VersionMade)
    assert len(versions) == 14 and of(log, events.Done)[0].versions == 14
    assert hashlib.sha256(model).hexdigest() == versions[-1].sha256
    assert sum(array.size for array in load(model).values()) == 31
    # The attacker's first two updates are over the public bound: refused at once, then it is out.
    refused = of(log, events.Rejected)
    assert [(event.site, event.reason) for event in refused] == [("hospital-e", "over_norm_bound")] * 2
    assert [event.site for event in of(log, events.Excluded)] == ["hospital-e"]
    assert all("hospital-e" not in version.sites for version in versions)
    # Asynchrony: every version mixes three distinct sites, the slow one is stale but counted.
    assert all(len(set(version.sites)) == 3 for version in versions)
    updates = of(log, events.Updated)
    slow = [event for event in updates if event.site == "hospital-d"]
    assert 1 <= len(slow) < len([event for event in updates if event.site == "hospital-a"])
    assert max(event.staleness for event in slow) >= 1
    assert all(event.norm <= 0.75 * (1 + 1e-5) for event in updates)
    # Noise is not seeded, so the exact figure differs from run to run; pooled and non-private is about .99.
    assert versions[-1].auc > 0.94


@pytest.mark.parametrize(
    ("controller", "executor", "reason"),
    [
        (
            {},
            {"dp": {"noise_multiplier": 1.0}},
            r"epsilon_over_policy: the job's plan spends epsilon [\d.]+ .*allows 4",
        ),
        ({}, {"model": "ResNet18"}, r"unknown model 'ResNet18'; models are FullyConnectedNet"),
        ({}, {"model_args": {"hidden_channels": [100000]}}, r"hidden_channels"),
    ],
    ids=["more epsilon than the policy", "unknown model", "huge model"],
)
def test_every_hospital_refuses_before_training(federation, lead, job_variant, controller, executor, reason):
    meta = lead.wait(lead.submit(job_variant(controller, executor)), timeout_s=60)
    details = meta["job_deploy_detail"]
    for site in federation.sites:
        said = [line for line in details if line.startswith(f"{site}: ")]
        assert said and re.search(reason, said[0]), details
    assert "COMPLETED" not in meta["status"]


def test_the_coordinator_refuses_what_is_no_job_of_ours(federation, lead, job_variant):
    meta = lead.wait(lead.submit(job_variant({"privacy": "none"}, {})), timeout_s=60)
    (said,) = meta["job_deploy_detail"]
    assert re.match(r"server: .*refuses the job: .*Invalid enum value 'none' - at `\$\S*\.privacy`", said), said
    assert "COMPLETED" not in meta["status"]


def test_job_with_code_is_refused_at_the_door(federation, lead, job_variant):
    """FLARE's command line says the coordinator's own reason, and there is no such job afterwards."""

    def known():
        with federation.session() as session:
            return sorted(each["job_id"] for each in session.list_jobs())

    folder, before = job_variant(), known()
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "evil.py").write_text("raise SystemExit\n")
    code, output = lead.nvflare("job", "submit", "-j", str(folder), "--format", "json")
    assert code == 1, output
    assert "JOB_INVALID" in output, output
    assert "the job brings its own code (byoc): jobs are configuration only in confidential mode" in output, output
    assert known() == before


def table_of_hospital_e(folder):
    """The plain table from which the vault of hospital-e was sealed."""
    samples.write_hospital("hospital-e", "csv", folder / "patients.csv", wdbc.split(0).sites["hospital-e"])
    return folder / "patients.csv"


def test_one_hospitals_trouble_is_told_and_the_others_train(federation, lead, job_variant, tmp_path):
    """hospital-a lost its mapping, hospital-e sealed a NaN: both are named with the reason, two versions are made."""
    mapping = federation.kit("hospital-a") / "local" / "mappings" / "wdbc-1.0.0.yml"
    vault = federation.kit("hospital-e") / "data" / "patients.vault"
    table = table_of_hospital_e(tmp_path / "plain")
    lines = table.read_text().splitlines()
    cells = lines[1].split(",")
    cells[3] = "nan"
    table.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    aside = shutil.move(mapping, tmp_path / "aside.yml")  # a kit holds no file that provisioning does not write
    good = shutil.move(vault, tmp_path / "good.vault")
    seal_into(federation.broker, "hospital-e", table.parent, vault)
    try:
        job_id = lead.submit(job_variant(SHORT))
        meta = lead.wait(job_id)
    finally:
        shutil.move(aside, mapping)
        shutil.move(good, vault)
    said = [line for line in meta["job_deploy_detail"] if line.startswith("hospital-a: ")]
    assert said and "wdbc-1.0.0.yml: missing" in said[0] and "cordon sign" in said[0], meta["job_deploy_detail"]
    _, log = lead.result(job_id, tmp_path / "result")
    assert [(event.site, event.reason) for event in of(log, events.SiteRefused)] == [("hospital-e", "data_not_finite")]
    assert [version.sites for version in of(log, events.VersionMade)] == [
        ["hospital-b", "hospital-c", "hospital-d"]
    ] * 2


def test_a_vault_without_a_key_at_the_broker_is_told_by_reason(federation, lead, job_variant, tmp_path):
    """hospital-b's file is replaced by a vault that its broker never saw: no key, and three others train."""
    vault = federation.kit("hospital-b") / "data" / "patients.vault"
    good = shutil.move(vault, tmp_path / "good.vault")
    seal([("patients.csv", io.BytesIO(b"patient_id\n"))], vault, bytes(32))
    try:
        job_id = lead.submit(job_variant(SHORT))
        lead.wait(job_id)
    finally:
        vault.unlink()
        shutil.move(good, vault)
    _, log = lead.result(job_id, tmp_path / "result")
    assert [(event.site, event.reason) for event in of(log, events.SiteRefused)] == [("hospital-b", "key_refused")]
    assert len(of(log, events.VersionMade)) == 2


def test_killed_site_does_not_stop_the_job(federation, lead, job_variant, tmp_path):
    """kill -9 of everything hospital-b runs, in the middle: the job goes on and the log says so. Runs last."""
    job_id = lead.submit(job_variant({"versions": 5, "rounds_per_site": 8, "ticket_timeout_s": 8.0}))
    path = federation.kit("server") / job_id / "events.jsonl"
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not killed.is_set():
            if path.exists() and of(events.read(path), events.VersionMade):
                for process in federation.processes("hospital-b"):
                    process.kill()
                killed.set()
            time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    lead.wait(job_id)
    thread.join()
    assert killed.is_set()
    folder, log = lead.result(job_id, tmp_path / "result")
    assert "hospital-b" in {event.site for event in of(log, events.SiteLost)}
    versions = of(log, events.VersionMade)
    assert len(versions) == 5
    assert versions[-1].sites == ["hospital-a", "hospital-c", "hospital-d"]
    assert (folder / MODEL_FILE).exists()
    shutil.rmtree(tmp_path / "result")


def test_no_measurement_of_a_patient_is_in_any_log(federation, tmp_path):
    """Every number that the logs hold, against every number that the CSV hospital's table holds."""
    table = table_of_hospital_e(tmp_path).read_text().splitlines()
    values = {cell for line in table[1:] for cell in line.split(",") if len(cell) >= 6 and "." in cell}
    assert len(values) > 500
    logs = [path for path in Path(federation.workspace).rglob("*log*") if path.suffix in {".txt", ".log", ".jsonl"}]
    assert len(logs) > 12
    for path in logs:
        seen = set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", path.read_text(errors="replace")))
        assert not seen & values, path
