"""``cordon broker add | forget | revoke | status | backup | restore | accept-clock``: a broker, looked after.

All but ``restore`` work beside a running broker, which sees in its next answer what they wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, messages, signing
from cordon.broker import restore as restoring
from cordon.broker import state
from cordon.broker.files import make_private
from cordon.broker.tenant import TenantBroker
from cordon.cli.broker.opening import Setup, now, show
from cordon.cli.vault import read_key, readable
from cordon.errors import ConfigError
from cordon.messages import LedgerHead
from cordon.study import StudyContract


def add(args: argparse.Namespace) -> int:
    """Register a vault's key, once it has opened the vault."""
    from cordon.data.vault import Vault

    setup = Setup.load(args.config)
    tenant, key = setup.tenant(args.tenant), read_key(args.key)
    with readable(), Vault(args.vault, key) as vault:  # header, directory and end are verified by this key
        stamp = vault.stamp
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        new = broker.register(stamp, key, now(), allow_older=args.allow_older)
    said = {"tenant": tenant.name, **documents.body_of(stamp), "new": new}
    show(
        args,
        said,
        [
            f"{tenant.name}: vault {stamp.vault} version {stamp.version} {'' if new else 'was '}registered",
            f"now make a backup (cordon broker backup), then destroy {args.key}: whoever has it needs no broker",
        ],
    )
    return 0


def forget(args: argparse.Namespace) -> int:
    """Destroy a vault's key."""
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        new, ended = broker.forget(args.vault, now())
    said = {"tenant": tenant.name, "vault": args.vault, "new": new, "revoked": ended, "within_s": tenant.check_s}
    what = "is destroyed here; a backup made before holds it still" if new else "was destroyed here before"
    lines = [f"{tenant.name}: the key of vault {args.vault} {what}"]
    lines += [f"  lease {lease} revoked; its process learns it within {tenant.check_s:g} s" for lease in ended]
    show(args, said, lines)
    return 0


def revoke(args: argparse.Namespace) -> int:
    """Take one thing back."""
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        new = broker.revoke(now(), job=args.job, lease=args.lease, measurement=args.measurement)
        seen = args.job is None or broker.knows_job(args.job)
    what, value = next((name, getattr(args, name)) for name in ("job", "lease", "measurement") if getattr(args, name))
    said = {"tenant": tenant.name, what: value, "new": new, "seen": seen, "within_s": tenant.check_s}
    when = f"processes learn it within {tenant.check_s:g} s" if new else "it was before"
    lines = [f"{tenant.name}: {what} {value} revoked; {when}"]
    if not seen:
        lines.append("no lease of this job was given so far (check the id against `status`); none will be")
    show(args, said, lines)
    return 0


def status(args: argparse.Namespace) -> int:
    """Budgets, live leases, ledger heads, vaults and revocations of all tenants."""
    setup, document, lines = Setup.load(args.config), [], []
    with setup.keys() as keys:
        for tenant in setup.settings.tenants:
            with setup.opened(tenant, keys) as broker:
                said = _status(broker)
            document.append(said)
            gate, head = tenant.gate, said["ledger"]
            lines += [
                f"{tenant.name}: {said['releases']} of {gate.max_releases} releases, "
                f"epsilon {said['epsilon']:.4g} of {gate.epsilon:g} (delta {gate.delta:g})",
                f"  ledger {head['ledger']}, row {head['seq']}, {head['head']}",
                *(f"  lease {each['lease']} of job {each['job']} until {each['expires']}" for each in said["leases"]),
                *(f"  vault {each['vault']} version {each['version']}" for each in said["vaults"]),
                *(f"  revoked: {each['kind']} {each['value']}" for each in said["revocations"]),
            ]
    show(args, {"tenants": document}, lines)
    return 0


def _status(broker: TenantBroker) -> dict[str, Any]:
    releases, epsilon = broker.spent()
    leases = [
        {"lease": lease, "job": job, "expires": expires.isoformat(timespec="seconds")}
        for lease, job, expires in broker.live_leases(now())
    ]
    head = broker.head()
    return {
        "tenant": broker.name,
        "site": broker.tenant.site,
        "study": broker.study,
        "releases": releases,
        "max_releases": broker.tenant.gate.max_releases,
        "epsilon": epsilon,
        "max_epsilon": broker.tenant.gate.epsilon,
        "leases": leases,
        "vaults": [documents.body_of(stamp) for stamp in broker.vaults()],
        "revocations": [{"kind": kind, "value": value} for kind, value in broker.revocations()],
        "ledger": signing.unverified_body(head),  # just made
        "ledger_signed": head,
    }


def backup(args: argparse.Namespace) -> int:
    """All tenants' states to a new folder, of mode 0700."""
    setup = Setup.load(args.config)
    if args.out.exists():
        raise ConfigError(f"{args.out}: exists; a backup goes to a new folder")
    make_private(args.out)
    rows: dict[str, int] = {}
    with setup.keys() as keys:
        for tenant in setup.settings.tenants:
            with setup.opened(tenant, keys) as broker:
                broker.backup(state.database(args.out, tenant.name))
                rows[tenant.name] = int(signing.unverified_body(broker.head())["seq"])
    lines = [f"{name}: {state.database(args.out, name)}" for name in rows]
    lines.append("it opens with this broker's key encryption key only: keep a copy of that too, elsewhere")
    show(args, {"folder": str(args.out), "tenants": list(rows)}, lines)
    return 0


def restore(args: argparse.Namespace) -> int:
    """One tenant's state from a backup."""
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    seen = None if args.last_seen is None else _head(setup, tenant.study, tenant.site, args.last_seen)
    source = state.database(args.source, tenant.name)
    if not source.exists():
        raise ConfigError(f"{source}: no backup there; --from wants the folder that `cordon broker backup` made")
    with setup.keys() as keys:
        head = restoring.restore(
            source, tenant.name, setup.state, keys, now(), lost_epsilon=args.lost_epsilon, last_seen=seen
        )
    said = {"tenant": tenant.name, "ledger": documents.body_of(head)}
    show(args, said, [f"{tenant.name}: restored; ledger row {head.seq}, {head.head}", "all leases have ended"])
    return 0


def accept_clock(args: argparse.Namespace) -> int:
    """Take this machine's clock for the right one."""
    setup, instant = Setup.load(args.config), now()
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        new = broker.accept_clock(instant)
    said = {"tenant": tenant.name, "now": instant.isoformat(timespec="seconds"), "new": new}
    what = "decides by the clock again" if new else "nothing was wrong: decides by the clock"
    show(args, said, [f"{tenant.name}: {what}, which says {said['now']}"])
    return 0


def _head(setup: Setup, study: str, site: str, path: Path) -> LedgerHead:
    """The ledger head in ``path``, signed by the broker's key that the study contract names."""
    contract = documents.load(setup.base / study, StudyContract)
    try:
        envelope = msgspec.json.decode(documents.read_bytes(path))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON") from error
    return messages.verify(envelope, LedgerHead, contract.hospital(site).broker_key, now())
