"""Put the demo's patients into the kits of a POC workspace, each hospital's share in the form that its policy names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cordon import documents
from cordon.demo import samples, wdbc
from cordon.errors import ConfigError
from cordon.site.policy import SitePolicy

REFERENCE = Path("data") / "reference.csv"


def site_policy(kit: Path) -> SitePolicy:
    """The policy in a hospital's kit."""
    return documents.load(kit / "local" / "cordon.yml", SitePolicy)


def fill_kit(kit: Path, site: str | None, split: wdbc.Split) -> Path:
    """Write the share of ``site`` (None: the coordinator's public reference set) and return where it lies."""
    if site is None:
        target = kit / REFERENCE
        target.parent.mkdir(parents=True, exist_ok=True)
        samples.write_reference(target, split.reference.x, split.reference.y)
        return target
    if site not in split.sites:
        raise ConfigError(f"{site}: the demo has data for {', '.join(split.sites)}")
    data = site_policy(kit).data
    target = (kit / "local" / data.source).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    samples.write_hospital(site, data.connector, target, split.sites[site])
    return target


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
        yield f"{kit.name}: {fill_kit(kit, kit.name if hospital else None, split)}"
