"""A POC federation of more hospitals than the demo has: made from its templates, with the patients divided anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import yaml

from cordon.demo import wdbc
from cordon.demo.kits import fill_kit
from cordon.flare import poc

ATTACKER = "hospital-e"


def project(repo_root: Path, folder: Path, hospitals: int) -> Path:
    """A project file in ``folder`` with ``hospitals`` hospitals (hospital-a, -b, ...), templates beside it.

    The first five are the demo's, hospital-e its liar, and nobody is slow; the others are copies of hospital-a's.
    """
    source, templates = repo_root / "provisioning", folder / "templates"
    shutil.copytree(source / "poc", templates)
    names = [f"hospital-{letter}" for letter in ascii_lowercase[:hospitals]]
    for name in names[5:]:
        for kind in (".", "mappings"):
            text = (templates / kind / "hospital-a.yml").read_text()
            (templates / kind / f"{name}.yml").write_text(text.replace("site: hospital-a", f"site: {name}"))
    slow = templates / "hospital-d.yml"
    slow.write_text(slow.read_text().replace("extra_delay_s: 4.0", "extra_delay_s: 0.0"))
    tree: dict[str, Any] = yaml.safe_load((source / "project.poc.yml").read_text())
    software = str(repo_root / "cc_config" / "software.yml")
    others = [each for each in tree["participants"] if each["type"] != "client"]
    for each in others:
        if "cc_config" in each:
            each["cc_config"] = software
    tree["participants"] = others + [
        {"name": name, "type": "client", "org": name.replace("-", "_"), "cc_config": software} for name in names
    ]
    for builder in tree["builders"]:
        if builder["path"] == poc.BUILDER:
            contract = repo_root / "jobs" / "oncology" / "app" / "config" / "contract.yml"
            builder["args"].update(documents=str(templates), contracts=[str(contract)])
    file = folder / "project.yml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def fill(federation: poc.Poc, seed: int = 0) -> None:
    """Give every hospital the same number of the demo's training patients, and the coordinator its reference set."""
    base, rng = wdbc.split(seed), np.random.default_rng(seed)
    everyone = wdbc.load()
    train = np.sort(np.concatenate([table.patients for table in base.sites.values()]))
    order = [rng.permutation(train[everyone.y[train] == label]) for label in (0, 1)]
    count = len(federation.sites)
    shares = {
        site: np.sort(np.concatenate([rows[index::count] for rows in order]))
        for index, site in enumerate(federation.sites)
    }
    split = wdbc.Split(base.reference, {site: everyone.take(rows) for site, rows in shares.items()})
    for site in federation.sites:
        fill_kit(federation.kit(site), site, split, federation.broker)
    fill_kit(federation.kit(federation.server), None, split, federation.broker)
