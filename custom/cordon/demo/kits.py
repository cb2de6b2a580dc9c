"""Put the demo's patients into the kits of a POC workspace, each hospital's share in the form that its policy names.

Here one person plays steward and security team of every hospital: the share is written to a temporary folder, sealed
into the vault that the policy names, and the vault's key goes to the hospital's key broker and nowhere else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cordon import documents
from cordon.data import vault
from cordon.data.source import FolderSource
from cordon.demo import samples, wdbc
from cordon.errors import ConfigError
from cordon.flare import poc_broker
from cordon.site.policy import SitePolicy

REFERENCE = Path("data") / "reference.csv"
FILES = {"sql": "ehr.sqlite", "csv": "patients.csv"}
"""Connector that wants one file -> its name; the others want a folder."""


def site_policy(kit: Path) -> SitePolicy:
    """The policy in a hospital's kit."""
    return documents.load(kit / "local" / "cordon.yml", SitePolicy)


def fill_kit(kit: Path, site: str | None, split: wdbc.Split, broker: Path) -> Path:
    """Write the share of ``site`` (None: the coordinator's public reference set) and return where it lies.

    Args:
        broker: the folder of the workspace's key broker.
    """
    if site is None:
        target = kit / REFERENCE
        target.parent.mkdir(parents=True, exist_ok=True)
        samples.write_reference(target, split.reference.x, split.reference.y)
        return target
    if site not in split.sites:
        raise ConfigError(f"{site}: the demo has data for {', '.join(split.sites)}")
    policy, table = site_policy(kit), split.sites[site]
    form = policy.data.connector
    if policy.data.vault is None:
        target = policy.resolve(kit / "local", str(policy.data.unsafe_source))
        samples.write_hospital(site, form, target, table)
        return target
    target = policy.resolve(kit / "local", policy.data.vault)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cordon-") as plain:
        samples.write_hospital(site, form, Path(plain) / FILES.get(form, ""), table)
        seal_into(broker, site, Path(plain), target)
    return target


def seal_into(broker: Path, site: str, folder: Path, target: Path) -> None:
    """Seal the files of ``folder`` into the vault ``target``; only the broker of ``site`` is told its fresh key."""
    key = os.urandom(vault.KEY_BYTES)
    stamp = vault.seal(_members(FolderSource(folder)), target, key)
    try:
        poc_broker.register(broker, site, stamp, key, datetime.now(UTC))
    except BaseException:
        target.unlink()  # nobody could open it
        raise


def _members(source: FolderSource) -> Iterator[tuple[str, BinaryIO]]:
    for name in source.members():
        with source.open(name) as file:
            yield name, file


def fill_kits(workspace: Path, seed: int) -> Iterator[str]:
    """Fill every kit of ``workspace`` (made by ``nvflare poc prepare -i provisioning/project.poc.yml``)."""
    kits = sorted(path.parent.parent for path in workspace.glob("*/prod_*/*/local/study.yml"))
    if not kits:
        raise ConfigError(
            f"{workspace}: no kits of Cordon; first run nvflare poc prepare -i provisioning/project.poc.yml"
        )
    split = wdbc.split(seed)
    for kit in kits:
        hospital = (kit / "local" / "cordon.yml").exists()
        broker = kit.parent.parent / poc_broker.FOLDER
        yield f"{kit.name}: {fill_kit(kit, kit.name if hospital else None, split, broker)}"
