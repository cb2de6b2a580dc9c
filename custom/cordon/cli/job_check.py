"""``cordon check job DIR --sites N``: whether a job fits its schema, and whether N sites can do what it asks.

What only N can tell, the coordinator says when the job begins; here a data scientist reads it before submitting.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, job, models
from cordon.data import contract
from cordon.errors import ConfigError

MAX_SITES = 1000  # of a study contract's roster


def sites_argument(text: str) -> int:
    """A number of sites, of the command line."""
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_SITES:
        raise argparse.ArgumentTypeError(f"want a number of sites from 1 to {MAX_SITES}, got {text!r}")
    return int(text)


def load(path: Path) -> job.Job:
    """The job in a FLARE job folder (meta.json and app/config); ConfigError if it does not fit, its model included."""
    try:
        meta = msgspec.json.decode(documents.read_bytes(path / "meta.json"), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path / 'meta.json'}: not a JSON object: {error}") from error
    parsed = job.from_folder(str(meta.get("name", "")), path / "app" / "config")
    features = documents.parse(
        parsed.contract, contract.FeatureContract, str(path / "app" / "config" / "contract.yml")
    ).features
    models.check(parsed.executor.model, parsed.executor.model_args, len(features))
    return parsed


def check_job(path: Path, sites: int | None, as_json: bool) -> int:
    """Print the digest and, with ``sites``, that so many are enough and whom they have to trust.

    Raises:
        ConfigError: it does not fit, or that many sites cannot do it: every inequality that fails, with its numbers.
    """
    parsed = load(path)
    if parsed.executor.local_parameters:
        from cordon.flare import plan

        plan.layout(parsed)  # builds the network: are these names of its parameters?
    said: dict[str, Any] = {"kind": "job", "path": str(path), "ok": True, "digest": parsed.digest}
    lines = [f"{path}: fits job; digest {parsed.digest}"]
    if sites is None:
        lines.append("not checked: whether your sites are enough, and whom they have to trust (--sites N)")
    else:
        from cordon.flare import plan  # FLARE: only where it is asked for

        plan.check_job(parsed, sites)
        said |= {"sites": sites, "privacy": parsed.controller.privacy}
        lines.append(f"{parsed.controller.privacy}, with {sites} sites: feasible")
        if parsed.controller.masked is not None:
            from cordon.secagg import terms

            said["trust"] = terms.trust(parsed.controller, sites)
            lines.append(said["trust"])
    print(json.dumps(said) if as_json else "\n".join(lines))
    return 0
