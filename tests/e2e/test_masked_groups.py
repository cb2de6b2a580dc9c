"""Masked groups in a POC of nine hospitals: one that lies spoils its group and no more; too few groups end the job.

g = 3, f = 1, u_min = 3, c = 1: three groups of three, a buffer of all of them, a median over their means. No group can
do without a member (t = 3), so the drop-out of one ends its group, and with it the job.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cordon import job as jobs
from cordon import sealed_model
from cordon.flare import plan, poc, poc_documents
from cordon.flare.persistor import MODEL_FILE
from cordon.report import events
from cordon.report.cohorts import Cohorts
from cordon.secagg.groups import digest as map_digest
from cordon.secagg.terms import check_feasible
from fakes.lead import Lead
from fakes.more_hospitals import ATTACKER, fill, project

HOSPITALS = 9
GROUPS = {"size": 3, "f": 1, "drop_outs": 0, "may_stop": 0}


def of(log, kind):
    return [event for event in log if isinstance(event, kind)]


@pytest.fixture(scope="module")
def federation(repo_root, tmp_path_factory):
    """Coordinator and nine hospitals; hospital-e flips its labels and scales its update by 10."""
    folder = tmp_path_factory.mktemp("nine")
    prepared = poc.prepare(project(repo_root, folder, HOSPITALS), folder / "run")
    fill(prepared)
    try:
        prepared.start(timeout_s=240)
        yield prepared
    finally:
        prepared.stop()
        assert prepared.processes() == []


@pytest.fixture
def groups_job(repo_root, tmp_path):
    """jobs/oncology_masked with groups, a median over their means, and fewer versions."""
    folder = Path(shutil.copytree(repo_root / "jobs" / "oncology_masked", tmp_path / "oncology_masked"))
    file = folder / "app" / "config" / "config_fed_server.json"
    config = json.loads(file.read_text())
    args = config["workflows"][0]["args"]
    args["masked"]["groups"] = GROUPS
    args.update(buffer=3, versions=6, rule="median")
    file.write_text(json.dumps(config))
    meta = folder / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "min_clients": HOSPITALS}))
    check_feasible(jobs.from_folder("oncology_masked", folder / "app" / "config").controller, HOSPITALS)
    return folder


@pytest.mark.poc
@pytest.mark.slow
def test_a_lying_hospital_spoils_its_group_and_the_rule_holds(federation, groups_job, tmp_path):
    lead = Lead(federation)
    job_id = lead.submit(groups_job)
    lead.wait(job_id, timeout_s=400)
    result, log = lead.result(job_id, tmp_path / "result")

    # The map: every hospital in one group of three, as all of them drew it.
    (drawn,) = of(log, events.GroupsDrawn)
    assert sorted(site for group in drawn.groups for site in group) == list(federation.sites)
    assert [len(group) for group in drawn.groups] == [3, 3, 3]
    assert drawn.digest == map_digest(tuple(map(tuple, drawn.groups)))
    assert min(event.t for event in of(log, events.TicketIssued)) > drawn.t

    # Only whole groups were opened, and every version is of all three.
    book = Cohorts()
    for event in log:
        book.take(event)
    for cohort in book.all.values():
        assert list(cohort.sites) == drawn.groups[cohort.group] and cohort.least == 3
        assert cohort.state == "running" or cohort.survivors == cohort.sites
    versions = of(log, events.VersionMade)
    assert [made.version for made in versions] == list(range(1, 7))
    assert all(sorted(made.sites) == list(federation.sites) for made in versions)
    assert of(log, events.Done)[-1].reason == "all 6 versions made"

    # The model is good in spite of the liar, whose group points apart.
    assert versions[-1].auc > 0.94
    assert all(made.divergence.least < made.divergence.greatest for made in versions)
    assert of(log, events.Rejected) == [] and of(log, events.Excluded) == []  # nobody saw who it was
    assert any(ATTACKER in group for group in drawn.groups)

    # The model that was downloaded is that of the last version.
    key = poc_documents.release_key(federation.state)
    _, model = sealed_model.open_file(result / MODEL_FILE, [key])
    (tmp_path / "model.safetensors").write_bytes(model)
    layout = plan.layout(jobs.from_folder("oncology_masked", groups_job / "app" / "config"))
    assert layout.flatten(load_file(tmp_path / "model.safetensors")).shape == (31,)
    assert hashlib.sha256(model).hexdigest() == versions[-1].sha256


@pytest.mark.poc
@pytest.mark.slow
def test_one_drop_out_of_nine_ends_the_job_with_the_reason(federation, groups_job, tmp_path):
    """The last test of this federation: hospital-b is killed after the first version."""
    lead = Lead(federation)
    job_id = lead.submit(groups_job)
    log_file = federation.kit(federation.server) / job_id / events.EVENTS_FILE
    follow = events.follow(log_file)
    seen: list[events.Event] = []
    deadline = time.monotonic() + 240
    while not of(seen, events.VersionMade):
        assert time.monotonic() < deadline, seen[-3:]
        seen += next(follow)
        assert not of(seen, events.Done), seen[-1]
        time.sleep(0.2)
    for process in federation.processes("hospital-b"):
        process.kill()
    lead.wait(job_id, timeout_s=300)
    _, log = lead.result(job_id, tmp_path / "result")
    (drawn,) = of(log, events.GroupsDrawn)
    group = next(number for number, sites in enumerate(drawn.groups) if "hospital-b" in sites)
    done = of(log, events.Done)[-1]
    assert 1 <= done.versions < 6
    assert done.reason.startswith("2 of 3 groups can still open, a version wants 3 (f = 1: at least 3)")
    assert f"group {group}: " in done.reason
    assert any(event.site == "hospital-b" for event in of(log, events.SiteLost))
    killed_at = next(event.t for event in of(log, events.SiteLost) if event.site == "hospital-b")
    for opened in of(log, events.CohortOpened):
        assert len(opened.survivors) == 3
        assert opened.t < killed_at or opened.group != group
