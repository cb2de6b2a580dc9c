"""``cordon broker add | revoke | status | receipts | backup | restore | accept-clock``: a broker, looked after.

All but ``restore`` work beside a running broker, which sees in its next answer what they wrote.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, messages, signing
from cordon.broker import restore as restoring
from cordon.broker import state
from cordon.broker.files import make_private
from cordon.broker.receipts import verify_receipts
from cordon.broker.tenant import TenantBroker
from cordon.cli.broker.opening import Setup, now, show
from cordon.cli.vault import read_key, readable
from cordon.errors import ConfigError, SignatureError
from cordon.messages import LedgerHead
from cordon.study import StudyContract

PAGE = 1000


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


def revoke(args: argparse.Namespace) -> int:
    """Take one thing back."""
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        new = broker.revoke(now(), job=args.job, lease=args.lease, measurement=args.measurement)
    what, value = next((name, getattr(args, name)) for name in ("job", "lease", "measurement") if getattr(args, name))
    said = {"tenant": tenant.name, what: value, "new": new, "within_s": tenant.check_s}
    when = f"processes learn it within {tenant.check_s:g} s" if new else "it was before"
    show(args, said, [f"{tenant.name}: {what} {value} revoked; {when}"])
    return 0


def status(args: argparse.Namespace) -> int:
    """Budgets, live leases, ledger heads of all tenants."""
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
        "ledger": signing.unverified_body(head),  # just made
        "ledger_signed": head,
    }


def receipts(args: argparse.Namespace) -> int:
    """The receipts of one tenant, verified if asked."""
    if args.verify != (args.spki is not None):
        raise ConfigError("--verify and --spki go together")
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        envelopes = list(_all_receipts(broker, 0 if args.verify else args.since))
    if args.verify:
        found, (seq, head) = verify_receipts(envelopes, _public_key(args.spki), now())
        if args.since > len(found):
            raise SignatureError(f"want receipts after number {args.since}, there are {len(found)}")
        envelopes = envelopes[args.since :]
    bodies = [signing.unverified_body(each) for each in envelopes]
    lines = [
        " ".join(str(body[name]) for name in ("seq", "time", "decision", "verdict", "job", "lease", "detail")).rstrip()
        for body in bodies
    ]
    document: dict[str, Any] = {"tenant": tenant.name, "receipts": envelopes}
    if args.verify:
        document["verified"] = {"seq": seq, "head": head}
        lines.append(f"{seq} receipts: chain and signatures hold; it ends at {head or 'nothing'}")
    show(args, document, lines)
    return 0


def _all_receipts(broker: TenantBroker, since: int) -> Iterator[dict[str, Any]]:
    while page := broker.receipts(since, PAGE):
        yield from page
        since += len(page)


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
        broker.accept_clock(instant)
    said = {"tenant": tenant.name, "now": instant.isoformat(timespec="seconds")}
    show(args, said, [f"{tenant.name}: decides by the clock again, which says {said['now']}"])
    return 0


def _head(setup: Setup, study: str, site: str, path: Path) -> LedgerHead:
    """The ledger head in ``path``, signed by the broker's key that the study contract names."""
    contract = documents.load(setup.base / study, StudyContract)
    try:
        envelope = msgspec.json.decode(documents.read_bytes(path))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON") from error
    return messages.verify(envelope, LedgerHead, contract.hospital(site).broker_key, now())


def _public_key(path: Path) -> signing.PublicKey:
    """From PEM, DER, or the base64 text that ``init`` prints and a study contract holds."""
    data = documents.read_bytes(path)
    try:
        return signing.load_public_key(data)
    except ConfigError:
        return signing.decode_spki(os.fsdecode(data).strip())
