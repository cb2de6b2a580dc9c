"""The demo, start to finish: provision, start, attest, train, report, clean up.

The driver stands outside the federation. It made the sites' data, so it may compute what no federation could (the
pooled model, each hospital alone), and it reads the job's event log to show progress; it never touches the job itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from rich.console import Console

import cordon
from cordon import documents, messages, sealed_model, study
from cordon import job as jobs
from cordon.demo import baselines, key_releases, wdbc
from cordon.demo.admission import admissions, wait_for_admission
from cordon.demo.job_record import grouped, refusals, why
from cordon.demo.kits import fill_kit, site_policy
from cordon.dp.accounting import epsilon
from cordon.errors import ConfigError, CordonError, PolicyRefused
from cordon.flare import plan, poc, poc_documents
from cordon.flare.key_records import LEASES_FILE
from cordon.flare.persistor import MODEL_FILE
from cordon.report import events
from cordon.report.events import EVENTS_FILE
from cordon.report.html import render
from cordon.report.live import LiveView
from cordon.report.metrics import metrics
from cordon.report.record import Epsilons, Role, RunRecord, SiteFacts
from cordon.site.policy import SitePolicy

JOB_TIMEOUT_S = 1800.0
MAX_SAID = 400  # characters of a failure in the display; the whole of it ends the command
OPENED_FILE = "model.safetensors"
KEPT = ("attestation.jsonl", LEASES_FILE)
MIN_FREE_BYTES = 512 * 1024**2
SOURCES = {
    "fhir": "HL7 FHIR R4 NDJSON",
    "sql": "SQL database (SQLite)",
    "pdf": "PDF pathology reports",
    "omop": "OMOP CDM tables (CSV)",
    "csv": "plain CSV",
}


@dataclass
class Demo:
    """One run and what it has so far."""

    job: jobs.Job
    job_folder: Path
    seed: int
    out: Path
    view: LiveView
    federation: poc.Poc
    ended: dict[str, str] = field(default_factory=dict)
    """site -> what was seen of its processes, where they did not last to the end of the job."""

    @cached_property
    def split(self) -> wdbc.Split:
        """Who has which patients."""
        return wdbc.split(self.seed)

    @cached_property
    def policies(self) -> dict[str, SitePolicy]:
        """Each hospital's own policy."""
        return {site: site_policy(self.federation.kit(site)) for site in self.federation.sites}

    def epsilons(self, site: str, rounds: int) -> Epsilons:
        """What ``rounds`` rounds cost the patients of ``site``, in every figure the report shows."""
        policy, delta = self.policies[site], self.job.executor.dp.delta
        spent = [(plan.round_event(self.job, policy), rounds)]
        shared = plan.figures(self.job, policy, rounds) if plan.distributed(self.job) else None
        return Epsilons(
            pld=epsilon(spent, delta),
            pld_replace_one=epsilon(spent, delta, adjacency="replace_one"),
            rdp=epsilon(spent, delta, accountant="rdp"),
            limit=policy.dp.epsilon,
            public=None if shared is None else shared.public,
            own=None if shared is None else shared.own_share,
        )


def run_demo(
    job: str,
    *,
    privacy: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    port: int | None = None,
    quiet_stdout: bool = False,
) -> dict[str, Any]:
    """Run job ``job`` in POC mode and leave report.html, metrics.json, models and logs in ``out``.

    In a masked job without groups nobody lies: it protects against no lying site.

    Args:
        privacy: the mode that the caller wants the job to have, if any.

    Returns:
        The content of metrics.json.

    Raises:
        CordonError: with the site and the reason where something in the federation failed.
    """
    started = time.monotonic()
    # Bound to the stream itself: FLARE's client library prints, and is silenced by redirecting sys.stdout.
    console = Console(file=sys.stderr if quiet_stdout else sys.stdout)
    root = repository()
    folder = root / "jobs" / job
    if not (folder / "meta.json").is_file():
        known = sorted(path.parent.name for path in (root / "jobs").glob("*/meta.json"))
        raise ConfigError(f"no job {job!r} under {root / 'jobs'}; there are {', '.join(known) or 'none'}")
    parsed = jobs.from_folder(job, folder / "app" / "config")
    if privacy not in (None, parsed.controller.privacy):
        raise ConfigError(f"job {job} is {parsed.controller.privacy}; --privacy says {privacy}")
    out = _empty_folder(out or root / "runs" / datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    work = out / "work"
    logging.getLogger("nvflare").setLevel(logging.ERROR)
    rounds = plan.round_event(parsed)
    view = LiveView(
        console,
        time.monotonic,
        lambda _site, released: epsilon([(rounds, released)], parsed.executor.dp.delta),
        _sources_of(root),
    )
    with _interruptible(), view:
        try:
            view.phase("environment", f"Python and packages ready, results in {out}")
            _check_environment(out, root / "runs")
            view.phase("provision", "keys, kits, signed policies, key broker")
            masked = parsed.controller.masked
            federation = poc.prepare(
                root / "provisioning" / "project.poc.yml",
                work,
                port,
                all_honest=masked is not None and masked.groups is None,
            )
            demo = Demo(parsed, folder, seed, out, view, federation)
            try:
                values = _run(demo, started)
            except BaseException as error:
                view.fail("interrupted" if isinstance(error, KeyboardInterrupt) else str(error)[:MAX_SAID])
                raise
            finally:
                _ignore_signals()  # the cleaning is short and must be whole
                view.phase("stop", "ending every process, removing keys")
                federation.stop()
                _keep_logs(federation, out / "logs")
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):
                out.rmdir()  # where nothing came of the run
    view.final_table(values)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return values


def repository() -> Path:
    """The checkout that holds ``jobs/`` and ``provisioning/``: the current folder, or where this package lies."""
    for folder in (Path.cwd(), Path(cordon.__file__).resolve().parents[2]):
        if (folder / "jobs").is_dir() and (folder / "provisioning" / "project.poc.yml").is_file():
            return folder
    raise ConfigError("no jobs/ and provisioning/project.poc.yml here: run the demo from a checkout of Cordon")


def _empty_folder(path: Path) -> Path:
    """``path``, made if need be; ConfigError if it holds something or cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"{path}: exists and is not empty; choose another folder with --out")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be a result folder: {error.strerror}") from error
    return path.resolve()


def _run(demo: Demo, started: float) -> dict[str, Any]:
    view, federation = demo.view, demo.federation
    with ThreadPoolExecutor(1) as background:
        baseline: Future[tuple[float, dict[str, float]]] = background.submit(_data_and_baselines, demo)
        sites = len(federation.sites)
        view.phase("start", f"key broker, coordinator and {sites} sites on port {federation.port}")
        federation.start()
        view.phase("attest", "each side challenges the other (software TEE: proves nothing about hardware)")
        wait_for_admission(federation)
        pooled, alone = baseline.result()
    view.phase("train", f"job {demo.job.name}")
    result = _train(demo)
    view.phase("report")
    log = events.read(result / EVENTS_FILE)
    shutil.copyfile(result / MODEL_FILE, demo.out / MODEL_FILE)
    model = _open_model(demo)
    record = RunRecord(
        events=log,
        sites={site: _facts(demo, site, log) for site in federation.sites},
        wall_s=time.monotonic() - started,
        seed=demo.seed,
        auc_centralised=pooled,
        auc_local=alone,
        software={name: version_of(name) for name in ("cordon", "nvflare", "torch", "opacus", "monai")},
        logs=tuple(f"logs/{name}" for name in (federation.server, *federation.sites, "broker")),
        ended=demo.ended,
        attestation=admissions(federation),
        key_releases=key_releases.key_releases(federation),
    )
    values = metrics(record)
    if values["model_sha256"] != messages.sha256(model):
        raise CordonError(f"{demo.out / MODEL_FILE}: not the model of the last version; the result is damaged")
    (demo.out / OPENED_FILE).write_bytes(model)
    (demo.out / "metrics.json").write_text(json.dumps(values, indent=1) + "\n")
    (demo.out / "report.html").write_text(render(record, values), encoding="utf-8")
    return values


def _open_model(demo: Demo) -> bytes:
    """The sealed model's safetensors, by the release key of the lead, whose part the person at the terminal plays."""
    federation = demo.federation
    key = poc_documents.release_key(federation.state)
    header, model = sealed_model.open_file(demo.out / MODEL_FILE, [key])
    agreed = study.load_signed(federation.kit(federation.server) / "local" / "study.yml", datetime.now(UTC))
    sealed_model.check_study(header, agreed)
    return model


def _data_and_baselines(demo: Demo) -> tuple[float, dict[str, float]]:
    """Seal every site's data into its vault, then compute what the federation is compared with."""
    federation = demo.federation
    for name in federation.sites:
        fill_kit(federation.kit(name), name, demo.split, federation.broker)
    fill_kit(federation.kit(federation.server), None, demo.split, federation.broker)
    honest = [site for site in federation.sites if _role(demo.policies[site]) != "malicious"]
    return baselines.auc_pooled(demo.split, honest), baselines.auc_alone(demo.split, honest)


def _train(demo: Demo) -> Path:
    """Submit as the lead, follow the event log, download the result: the folder with event log and model."""
    federation, view = demo.federation, demo.view
    copy = federation.home / demo.job.name  # FLARE signs a job folder in place
    shutil.copytree(demo.job_folder, copy)
    with _silenced(), federation.session() as session:
        job_id = session.submit_job(str(copy))
        follow = events.follow(federation.kit(federation.server) / job_id / EVENTS_FILE)
        began, asked = time.monotonic(), 0.0
        deadline = began + JOB_TIMEOUT_S
        while True:
            for event in next(follow):
                view.event(event)
                if isinstance(event, events.Done):
                    view.phase("train", f"job {demo.job.name}: trained; FLARE is closing the job")
            if time.monotonic() - asked > 2.0:
                asked = time.monotonic()
                _look_for_dead(demo, asked - began)
                meta = session.get_job_meta(job_id)
                if str(meta.get(poc.STATUS, "")).startswith("FINISHED"):
                    break
            if asked > deadline:
                raise CordonError(f"job {job_id} did not end within {JOB_TIMEOUT_S:.0f} s")
            time.sleep(0.2)
        refused = refusals(federation, demo.job.name, meta)
        for site, reason in refused.items():
            view.event(events.SiteRefused(t=0.0, site=site, reason=reason[: events.MAX_TEXT]))
        download = Path(session.download_job_result(job_id, str(federation.home / "result")))
    shutil.copytree(
        download,
        demo.out / "logs" / federation.server / "job",
        ignore=shutil.ignore_patterns("*.key", "*.crt", "*.pem"),
    )
    found = sorted(download.rglob(EVENTS_FILE))
    if not found or not (found[0].parent / MODEL_FILE).exists():
        if set(refused) == set(federation.sites):
            raise PolicyRefused(grouped(refused))
        raise CordonError(
            f"job {job_id} made no model. {why(federation, demo.job.name, meta)} Logs: {demo.out / 'logs'}"
        )
    return found[0].parent


def _look_for_dead(demo: Demo, seconds: float) -> None:
    """Note sites that have no process left: killed, or stopped by their own kit's checks."""
    for site in demo.federation.sites:
        if site not in demo.ended and not demo.federation.processes(site):
            demo.ended[site] = f"all its processes were gone {seconds:.0f} s after the job was submitted"
            demo.view.event(events.SiteLost(t=seconds, site=site, reason="all its processes are gone"))


def _role(policy: SitePolicy) -> Role:
    unsafe = policy.unsafe_poc
    if unsafe is None:
        return "honest"
    if unsafe.flip_labels or unsafe.scale_update != 1.0:
        return "malicious"
    return "slow" if unsafe.extra_delay_s > 0 else "honest"


def _facts(demo: Demo, site: str, log: tuple[events.Event, ...]) -> SiteFacts:
    # A ticket counts from its issue: the site may have spent the round, whatever became of its update.
    started = len({event.ticket for event in log if isinstance(event, events.TicketIssued) and event.site == site})
    return SiteFacts(
        role=_role(demo.policies[site]),
        source=SOURCES[demo.policies[site].data.connector],
        epsilon=demo.epsilons(site, started) if started else None,
    )


def _check_environment(out: Path, runs: Path) -> None:
    free = shutil.disk_usage(out).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"{out}: {free // 1024**2} MiB free, the demo wants {MIN_FREE_BYTES // 1024**2}")
    # What a demo left whose driver was killed: its processes, and the private keys in its workspace.
    poc.reap_orphans()
    for abandoned in runs.glob("*/work"):
        poc.remove_abandoned(abandoned)


def _sources_of(root: Path) -> dict[str, str]:
    """site -> form of its data, from the POC's policies."""
    folder = root / "provisioning" / "poc"
    policies = [documents.load(path, dict) for path in sorted(folder.glob("hospital-*.yml"))]
    return {str(policy["site"]): SOURCES[policy["data"]["connector"]] for policy in policies}


def _keep_logs(federation: poc.Poc, target: Path) -> None:
    """Copy every log and the broker's receipts; nothing else is kept (there are private keys in it).

    The receipts last: a broker that was killed, or lies about them, must not cost the sites' logs.
    """
    for name in (federation.server, *federation.sites):
        kit = federation.kit(name)
        for path in sorted(kit.rglob("*")):
            if (path.suffix in {".txt", ".log", ".jsonl"} and "log" in path.name) or path.name in KEPT:
                copy = target / name / path.relative_to(kit)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    key_releases.keep(federation, target / "broker")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """FLARE's client library prints; the terminal is the live view's."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM cleans up like Ctrl-C; a second signal while cleaning up doesn't stop the cleaning."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        _ignore_signals()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
