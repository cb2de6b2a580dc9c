"""``cordon broker receipts``: of the broker itself, or, for an auditor without it, of a file of receipts."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, signing, study
from cordon.broker.gate import RECEIPT_TYPE
from cordon.broker.receipts import verify_receipts
from cordon.broker.tenant import TenantBroker
from cordon.cli.broker.opening import Setup, now, show
from cordon.errors import ConfigError, SignatureError

PAGE = 1000
MAX_FILE = 256 * 1024 * 1024  # bytes; a receipt has a few KiB

WANTED = (
    "want the broker_spki of the study contract (a file with that line, or its base64), not broker.spki of the site "
    "policy, which is the TLS key"
)


def receipts(args: argparse.Namespace) -> int:
    """The receipts of one tenant, verified if asked; or those of a file, which are always."""
    key = _key(args)
    if args.file is None:
        envelopes, said = _of_broker(args, key), {"tenant": args.tenant}
    elif args.config is not None or args.tenant is not None:
        raise ConfigError("--file is read without a broker: without --config and --tenant")
    elif key is None:
        raise ConfigError("--file wants --spki FILE, or --study FILE --site NAME: the key that the receipts must be by")
    else:
        envelopes, said = list(_of_file(args.file)), {"file": str(args.file)}
    document: dict[str, Any] = dict(said)
    verified: list[str] = []
    if key is not None:
        _check_signer(envelopes, key)
        found, (seq, head) = verify_receipts(envelopes, key, now())
        document["verified"] = {"seq": seq, "head": head}
        if found:
            verified = [f"{seq} receipts: chain and signatures hold; it ends at {head}"]
        if args.leases is not None:
            document["held"] = _check_held(args.leases, envelopes, key)
            verified.append(f"{document['held']} receipts in {args.leases}: all are among them")
        if args.since > len(found):
            raise SignatureError(f"want receipts after number {args.since}, there are {len(found)}")
        envelopes = envelopes[args.since :]
    bodies = [signing.unverified_body(each) for each in envelopes]
    lines = [
        " ".join(str(body[name]) for name in ("seq", "time", "decision", "verdict", "job", "lease", "detail")).rstrip()
        for body in bodies
    ]
    show(args, {**document, "receipts": envelopes}, [*(lines or ["no receipts"]), *verified])
    return 0


def _key(args: argparse.Namespace) -> signing.PublicKey | None:
    """By which to verify; None: not asked for."""
    if (args.study is None) != (args.site is None):
        raise ConfigError("--study and --site go together: the contract, and the hospital in it")
    if args.spki is not None and args.study is not None:
        raise ConfigError("want --spki, or --study and --site, not both")
    key = None
    if args.spki is not None:
        key = public_key(args.spki)
    elif args.study is not None:
        key = study.load_signed(args.study, now()).hospital(args.site).broker_key
    if args.file is None and args.verify != (key is not None):
        raise ConfigError("--verify and the key (--spki, or --study and --site) go together")
    if args.leases is not None and key is None:
        raise ConfigError("--leases goes with --verify or --file")
    return key


def _of_broker(args: argparse.Namespace, key: signing.PublicKey | None) -> list[dict[str, Any]]:
    if args.config is None or args.tenant is None:
        raise ConfigError("want --config FILE and --tenant NAME, or --file FILE")
    setup = Setup.load(args.config)
    tenant = setup.tenant(args.tenant)
    with setup.keys() as keys, setup.opened(tenant, keys) as broker:
        return list(_all_receipts(broker, args.since if key is None else 0))


def _all_receipts(broker: TenantBroker, since: int) -> Iterator[dict[str, Any]]:
    while page := broker.receipts(since, PAGE):
        yield from page
        since += len(page)


def _of_file(path: Path) -> Iterator[Any]:
    """Each line is an envelope, or what ``receipts --json`` prints: an object with a list of them."""
    for line in _lines(path):
        kept = line.get("receipts")
        yield from kept if isinstance(kept, list) else [line]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(documents.read_bytes(path, MAX_FILE).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is no JSON object; want one on each line") from error


def _check_signer(envelopes: Iterable[Any], key: signing.PublicKey) -> None:
    """SignatureError that says so if all receipts name another key: most likely it is this one that is wrong."""
    named = [_signers(each) for each in envelopes]
    if named and not any(signing.spki_digest(key) in each for each in named):
        raise SignatureError(f"none of {len(named)} receipts is signed by this key; {WANTED}")


def _signers(envelope: Any) -> set[str]:
    """The keys that an envelope names, whether or not they signed it."""
    entries = envelope.get("signatures") if isinstance(envelope, dict) else None
    each = entries if isinstance(entries, list) else []
    return {entry["keyid"] for entry in each if isinstance(entry, dict) and isinstance(entry.get("keyid"), str)}


def _check_held(path: Path, envelopes: Iterable[Any], key: signing.PublicKey) -> int:
    """How many receipts the kit's ``key_leases.jsonl`` holds; SignatureError if one is not among ``envelopes``."""
    kept, count = {each["payload"] for each in envelopes}, 0
    for line in _lines(path):
        if (envelope := line.get("receipt")) is None:  # the broker was not reached, or the lease's end came without one
            continue
        body, _ = signing.verify(envelope, RECEIPT_TYPE, [key], now())
        if envelope["payload"] not in kept:
            raise SignatureError(
                f"{path}: receipt {body.get('seq')} of {body.get('time')}, which the broker signed, is not among the "
                "broker's receipts: they were cut off, changed, or put back to an older state"
            )
        count += 1
    return count


def public_key(path: Path) -> signing.PublicKey:
    """From PEM, DER, the base64 text that a study contract holds, or the line with it that ``init`` prints."""
    data = documents.read_bytes(path)
    text = os.fsdecode(data).strip()
    named = re.findall(r"broker_spki:\s*[\"']?([A-Za-z0-9+/=]+)", text)
    if len(set(named)) > 1:
        raise ConfigError(f"{path}: names {len(set(named))} keys; leave the hospital's alone")
    try:
        if named:
            return signing.decode_spki(named[0])
        try:
            return signing.load_public_key(data)
        except ConfigError:
            return signing.decode_spki(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {WANTED}") from error
