"""``cordon attest fault``: whether a fault record proves what it says, judged again by whoever asks."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

import msgspec

from cordon import documents, study
from cordon.attest import collateral
from cordon.attest import fault as faults
from cordon.attest import policy as attestation
from cordon.attest.policy import AttestationPolicy
from cordon.attest.vendor import Trust
from cordon.attest.verdict import printable
from cordon.cli.attest.input import EVIDENCE, instant, policy_file, read
from cordon.cli.attest.output import hanging, write
from cordon.errors import AttestError, ConfigError, CordonError, SignatureError


def fault(args: argparse.Namespace) -> int:
    """0: the record proves a fault of the peer; 1: it does not."""
    now = instant(args.at)
    record = _record(read(args.record, 2 * EVIDENCE))
    said = _unverified(record)
    agreed = _study(args, now)
    members = {agreed.coordinator.name: agreed.coordinator.mtls_key}
    members |= {hospital.name: hospital.mtls_key for hospital in agreed.roster}
    for role, name in said.items():
        if name not in members:
            raise ConfigError(f"record_format: {role} {name!r} is no member of study {agreed.study}")
    policy = _policy_in_force(args, agreed, said["verifier"], now)
    try:
        proven = faults.verify(
            record,
            verifier_key=members[said["verifier"]],
            peer=said["peer"],
            peer_key=members[said["peer"]],
            study=agreed.digest,
            trust=_trust(args, policy),
            now=now,
        )
        detail = f"{said['peer']} signed evidence that fails policy {policy.name}"
    except (AttestError, SignatureError) as error:
        proven, detail = [], str(error)
    verdict: dict[str, Any] = {
        "proven": bool(proven),
        **said,
        "detail": detail,
        "failures": [{"code": code, "detail": why} for code, why in proven],
    }
    write(json.dumps(verdict) if args.json else _text(verdict))
    return 0 if proven else 1


def _record(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"record_format: not JSON: {error}") from error


def _unverified(record: Any) -> dict[str, str]:
    """Whom the record says it is by and about: only to look up their keys."""
    from cordon import signing

    try:
        body = signing.unverified_body(record)
        named = {role: body[role] for role in ("verifier", "peer")}
    except (SignatureError, KeyError, TypeError) as error:
        raise ConfigError("record_format: not a fault record") from error
    if not all(isinstance(name, str) and len(name) <= 128 for name in named.values()):
        raise ConfigError("record_format: not a fault record")
    return named


def _study(args: argparse.Namespace, now: datetime) -> study.StudyContract:
    try:
        return study.load_signed(args.study, now)
    except CordonError as error:
        raise ConfigError(f"study_format: {error}") from error


def _policy_in_force(
    args: argparse.Namespace, agreed: study.StudyContract, verifier: str, now: datetime
) -> AttestationPolicy:
    """The policy, if it is signed by those whose it is: all hospitals where the coordinator accuses, else the accuser.

    Otherwise an accuser could hand the reader a policy that it made for the occasion.
    """
    policy = policy_file(args.policy, AttestationPolicy)
    by_all = verifier == agreed.coordinator.name
    keys = [each.policy_key for each in agreed.roster] if by_all else [agreed.hospital(verifier).policy_key]
    try:
        data = read(args.policy, documents.MAX_DOCUMENT)
        documents.check_signature(args.policy, data, attestation.SCHEMA, keys, now, threshold=len(keys))
    except SignatureError as error:
        raise ConfigError(f"policy_signature: {error}") from error
    return policy


def _trust(args: argparse.Namespace, policy: AttestationPolicy) -> Trust:
    held = collateral.Collateral() if args.collateral is None else collateral.read(args.collateral)
    if policy.software == "none":
        return Trust(policy, held)
    from cordon.attest import software

    root = software.load_certificate(read(args.policy.parent / policy.software.root, EVIDENCE))
    return Trust(policy, held, root)


def _text(verdict: dict[str, Any]) -> str:
    head = "proven" if verdict["proven"] else "not proven"
    lines = [f"{printable(verdict['verifier'])} accuses {printable(verdict['peer'])}: {head}"]
    lines += hanging("  ", verdict["detail"])
    for each in verdict["failures"]:
        lines += hanging(f"  {each['code']}: ", each["detail"])
    return "\n".join(lines)
