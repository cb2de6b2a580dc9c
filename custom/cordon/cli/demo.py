"""``cordon demo``: a job in POC mode, from nothing to a report. ``cordon sample-data``: its data for your own POC."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

JOB_OF = {"sealed": "oncology", "masked": "oncology_masked"}
"""``--privacy`` -> job."""


def add_parser(sub: Any) -> None:
    """Add both commands."""
    demo = sub.add_parser(
        "demo",
        help="train a model across five hospitals, in FLARE POC mode, on this machine",
        description="Provisions a POC federation (coordinator and five sites), trains on the Wisconsin Diagnostic "
        "Breast Cancer measurements, writes runs/<timestamp>/ and cleans up. sealed: one site is malicious on purpose; "
        "the coordinator's attested process opens each update and can judge it. masked: only sums of hospitals are "
        "ever opened, which protects against no lying site, so all five are honest.",
    )
    demo.add_argument(
        "--privacy",
        choices=sorted(JOB_OF),
        help="sealed: jobs/oncology (the default); masked: jobs/oncology_masked",
    )
    demo.add_argument("--job", type=_name, help="job folder under jobs/, instead of the two that --privacy names")
    demo.add_argument("--seed", type=_seed, default=0, help="seed of how the patients are divided (default: 0)")
    demo.add_argument("--out", type=Path, default=None, help="result folder (default: runs/<timestamp>)")
    demo.add_argument("--port", type=_port, default=None, help="port of the POC server (default: a free one)")
    demo.add_argument("--json", action="store_true", help="print metrics.json to stdout; progress goes to stderr")
    demo.set_defaults(run=_demo)

    samples = sub.add_parser(
        "sample-data",
        help="put the demo's patients into the vaults of a prepared POC workspace",
        description="For `nvflare poc prepare -i provisioning/project.poc.yml`: gives each hospital its share of the "
        "demo's patients in its own form, sealed into the vault that its policy names, and the vault's key to its key "
        "broker; the coordinator gets the public reference set.",
    )
    samples.add_argument(
        "workspace", type=Path, help="POC workspace ($NVFLARE_POC_WORKSPACE, default /tmp/nvflare/poc)"
    )
    samples.add_argument("--seed", type=_seed, default=0, help="seed of how the patients are divided (default: 0)")
    samples.set_defaults(run=_samples)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise argparse.ArgumentTypeError(f"want the plain name of a folder under jobs/, got {text!r}")
    return text


def _number(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"want a number from {low} to {high}, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    return _number(text, 0, 2**32 - 1)


def _port(text: str) -> int:
    return _number(text, 1, 65535)


def _demo(args: argparse.Namespace) -> int:
    from cordon.demo.driver import run_demo  # imports FLARE: only when asked for

    job = args.job or JOB_OF[args.privacy or "sealed"]
    metrics = run_demo(job, privacy=args.privacy, seed=args.seed, out=args.out, port=args.port, quiet_stdout=args.json)
    if args.json:
        print(json.dumps(metrics, indent=1))
    return 0


def _samples(args: argparse.Namespace) -> int:
    from cordon.demo.kits import fill_kits

    for line in fill_kits(args.workspace, args.seed):
        print(line)
    return 0
