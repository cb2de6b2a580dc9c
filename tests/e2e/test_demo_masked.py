"""`cordon demo --privacy masked`: what was opened are sums of the hospitals' own updates, and nothing else.

Listeners in every process (``wiretap``) keep what each hospital trained before it was masked. That is for this test
alone: in a federation nobody else has it.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as save_safetensors

from cordon import job as jobs
from cordon import staleness
from cordon.flare import plan
from cordon.flare.poc import WORKSPACE_VARIABLE
from cordon.report import events
from fakes.needles import Needles, forms

SITES = ["hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e"]
COMMAND = [sys.executable, "-m", "cordon.cli", "demo", "--privacy", "masked"]


def of(log, kind):
    return [event for event in log if isinstance(event, kind)]


def leftovers(out: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(WORKSPACE_VARIABLE, "").startswith(str(out)):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def job(repo_root):
    return jobs.from_folder("oncology_masked", repo_root / "jobs" / "oncology_masked" / "app" / "config")


@pytest.fixture(scope="module")
def demo(repo_root, tmp_path_factory):
    """A whole run with listeners in every process, the driver excepted."""
    tap, out = tmp_path_factory.mktemp("tap"), tmp_path_factory.mktemp("masked") / "run"
    for folder in ("plain", "sealed"):
        (tap / folder).mkdir()
    paths = [str(Path(__file__).parent / "wiretap"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "CORDON_WIRETAP": str(tap), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [*COMMAND, "--out", str(out)], cwd=repo_root, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = events.read(next((out / "logs").rglob("events.jsonl")))
    metrics = json.loads((out / "metrics.json").read_text())
    return SimpleNamespace(out=out, tap=tap, said=done.stdout, log=log, metrics=metrics)


def packed(tap, name):
    """(where, vector) of everything that was packed under ``name``, in the order of each process."""
    found = []
    for path in sorted(tap.glob("packed-*")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["name"] == name:
                vector = np.frombuffer((tap / "plain" / entry["sha256"]).read_bytes(), np.float32)
                found.append((entry["site"], vector))
    return found


def trained(demo):
    """(site, ticket) -> the update (d,) that the site trained for it: each process packs one per ticket, in order."""
    deltas = packed(demo.tap, "delta")
    made = {}
    for site in SITES:
        issued = dict.fromkeys(event.ticket for event in of(demo.log, events.TicketIssued) if event.site == site)
        mine = [vector for where, vector in deltas if f"/{site}" in where]
        assert len(mine) <= len(issued)  # the last may have come when all was over
        made |= {(site, ticket): vector for ticket, vector in zip(issued, mine, strict=False)}
    return made


@pytest.mark.poc
def test_result_report_and_metrics_of_a_masked_run(demo, job):
    metrics, log = demo.metrics, demo.log
    assert metrics["aggregation"] == {
        "privacy": "masked", "rule": "weighted_mean", "server_opt": "FedAvg", "buffer": 4
    }  # fmt: skip
    assert metrics["masked"] == {
        "cohort": 4, "threshold": 3, "u_min": 3, "c": 1, "ring_bits": 32, "distributed": False, "group_size": None,
        "f": None,
    }  # fmt: skip
    assert metrics["versions"] == 10 and metrics["auc"] > 0.94
    assert metrics["cohorts"]["opened"] == len(of(log, events.CohortOpened)) >= 10
    assert metrics["groups"] is None
    for name, site in metrics["sites"].items():
        assert site["role"] == "honest" and site["rejected"] == 0 and site["updates"] >= 1, name
        assert 0 < site["epsilon"] == site["epsilon_public"] == site["epsilon_own"] <= 3
    assert set(metrics["auc_local"]) == set(SITES)  # nobody lies, so each is compared with
    assert sum(site["updates"] for site in metrics["sites"].values()) == sum(
        len(event.survivors) for event in of(log, events.CohortOpened)
    )

    # The artefacts.
    model = demo.out / "model.safetensors"
    assert (
        hashlib.sha256(model.read_bytes()).hexdigest()
        == metrics["model_sha256"]
        == of(log, events.VersionMade)[-1].sha256
    )
    report = (demo.out / "report.html").read_text(encoding="utf-8")
    assert "no protection against a lying site" in report and "Mode masked, sum" in report
    assert "malicious (on purpose)" not in report
    assert "sum of 4 of 4 opened" in demo.said and "sums opened" in demo.said
    assert leftovers(demo.out) == []


@pytest.mark.poc
def test_every_version_is_the_plain_weighted_mean_of_what_its_hospitals_trained(demo, job):
    """The masked sum is exact: what masking, rounding and unmasking leave is under the model's own float32 rounding."""
    layout, deltas = plan.layout(job), trained(demo)
    versions = of(demo.log, events.VersionMade)
    assert [made.version for made in versions] == list(range(1, 11))
    by_digest = {
        hashlib.sha256(save_safetensors(layout.unflatten(vector))).hexdigest(): vector
        for _, vector in packed(demo.tap, "w")
    }
    opened = load_file(demo.out / "model.safetensors")
    by_digest[demo.metrics["model_sha256"]] = layout.flatten(opened)
    # The last model was only ever packed by the demo, which opened it with the release key.
    models = [plan.first_model(job), *(by_digest[made.sha256] for made in versions)]
    tickets, cohort, model = {}, {}, 0
    for event in demo.log:
        if isinstance(event, events.Ready):
            tickets[event.site] = event
        elif isinstance(event, events.CohortFormed):
            cohort = {site: (tickets[site].ticket, model - tickets[site].base_version) for site in event.sites}
        elif isinstance(event, events.CohortOpened):
            rows = [
                np.float64(staleness.weight(tau, job.controller.staleness)) * deltas[site, ticket]
                for site, (ticket, tau) in cohort.items()
                if site in event.survivors
            ]
            mean = np.sum(rows, axis=0) / len(rows)  # the study's weights are uniform; never divided by s(tau)
            assert event.norm == pytest.approx(np.linalg.norm(mean), rel=1e-5)
            step = mean * min(1.0, job.controller.server_opt.max_step / np.linalg.norm(mean))
            np.testing.assert_allclose(models[model + 1] - models[model], step, atol=3e-7, rtol=0)
            assert np.linalg.norm(step) > 1e-3  # not all zeros against all zeros
        elif isinstance(event, events.VersionMade):
            model = event.version
    assert model == len(models) - 1 == 10


@pytest.mark.poc
def test_no_update_left_its_hospital_in_the_clear(demo):
    """Every frame that any process sent or got, against every update in every form of writing it."""
    deltas = [vector for _, vector in packed(demo.tap, "delta")]
    assert len(deltas) >= 40
    needles = Needles({form: "update" for vector in deltas for form in forms(vector.tobytes())})
    frames = sorted(demo.tap.glob("frames-*"))
    assert sum(path.stat().st_size for path in frames) > 1_000_000
    for path in frames:
        data = path.read_bytes()
        assert needles.found_in(data) == set(), path
    assert needles.found_in(b"..." + deltas[0].tobytes() + b"...") == {"update"}  # the search does find one


@pytest.mark.poc
@pytest.mark.slow
def test_a_site_that_is_killed_in_the_middle_costs_the_job_nothing_but_that_site(repo_root, tmp_path):
    """kill -9 of all that hospital-b runs, after version 3: the other four go on to the last version."""
    out = tmp_path / "run"
    kit = str(out / "work" / "poc" / "cordon_poc" / "prod_00" / "hospital-b")
    demo = subprocess.Popen(
        [*COMMAND, "--out", str(out)], cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    for line in demo.stdout:
        said += line
        if "version 3 of" in line:
            for process in psutil.process_iter():
                try:
                    if any(kit in part for part in process.cmdline()):
                        process.kill()
                except psutil.Error:
                    continue
    demo.wait(timeout=400)
    assert demo.returncode == 0, said
    assert "hospital-b: lost: all its processes are gone" in said
    metrics = json.loads((out / "metrics.json").read_text())
    log = events.read(next((out / "logs").rglob("events.jsonl")))
    made = {event.version: event for event in of(log, events.VersionMade)}
    assert sorted(made) == list(range(1, 11)) and metrics["versions"] == 10 and metrics["auc"] > 0.94
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() == made[10].sha256
    assert metrics["sites"]["hospital-b"]["updates"] <= 5
    assert all("hospital-b" not in made[number].sites for number in range(6, 11))
    assert all(len(event.survivors) >= 3 for event in of(log, events.CohortOpened))
    for cohort in of(log, events.CohortFormed)[-4:]:
        assert sorted(cohort.sites) == ["hospital-a", "hospital-c", "hospital-d", "hospital-e"]
    assert all(metrics["sites"][site]["epsilon"] <= 3 for site in SITES)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "all its processes were gone" in report and "no protection against a lying site" in report
    assert leftovers(out) == []
