"""``cordon keygen``, ``cordon sign``, ``cordon check``: keys, signatures and schemas of the documents a hospital keeps.

A document is validated against its schema before it is signed: nobody signs what no kit would accept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, job, new_file, signing, study
from cordon.attest import policy as attestation
from cordon.cli.job_check import check_job, sites_argument
from cordon.data import contract
from cordon.errors import ConfigError
from cordon.site import policy as site_policy

SIGNED: dict[str, tuple[type[msgspec.Struct], str]] = {
    "study": (study.StudyContract, study.SCHEMA),
    "site": (site_policy.SitePolicy, site_policy.SCHEMA),
    "mapping": (contract.Mapping, contract.MAPPING_SCHEMA),
    "attestation": (attestation.AttestationPolicy, attestation.SCHEMA),
}
"""What ``--as`` may say: schema and the name under which its signature counts."""


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Add the commands of this module to ``cordon``."""
    keygen = sub.add_parser("keygen", help="make an Ed25519 key to sign policies or mappings with")
    keygen.add_argument("--out", type=Path, required=True, help="file for the private key (PEM, mode 0600)")
    keygen.add_argument("--pub", type=Path, help="file for the public key (PEM)")
    keygen.set_defaults(run=_keygen)

    sign = sub.add_parser("sign", help="sign a document; the signature goes to FILE.sig")
    sign.add_argument("--key", type=Path, required=True, help="private key (PEM or DER)")
    sign.add_argument("--as", dest="kind", choices=sorted(SIGNED), required=True, help="what the document is")
    sign.add_argument("file", type=Path)
    sign.set_defaults(run=_sign)

    check = sub.add_parser("check", help="check a document or job folder against its schema, or a startup kit")
    check.add_argument("kind", choices=sorted([*_CHECKS, "job", "kit"]))
    check.add_argument("path", type=Path)
    check.add_argument("--pin", type=Path, help="with kit: the pin that its study contract has to fit (cordon pin)")
    check.add_argument(
        "--sites", type=sites_argument, help="with job: also whether that many sites can do what it asks"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check)


def _keygen(args: argparse.Namespace) -> int:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if args.pub is None:
        new_file.write(args.out, private)
    else:
        with new_file.create(args.pub, 0o644) as file:  # neither half without the other
            file.write(public)
            file.flush()
            new_file.write(args.out, private)
    print(f"key: {args.out}\nspki: {signing.encode_spki(key.public_key())}")
    return 0


def _sign(args: argparse.Namespace) -> int:
    schema, name = SIGNED[args.kind]
    try:
        key = signing.load_private_key(documents.read_bytes(args.key))
    except ConfigError as error:
        raise ConfigError(f"{args.key}: {error}") from error
    documents.load(args.file, schema)
    target = documents.sign_file(args.file, name, key)
    signers = len(json.loads(target.read_text())["signatures"])
    print(f"{target}: signed as {name} by {signing.spki_digest(key.public_key())[:16]} ({signers} signatures)")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.sites is not None and args.kind != "job":
        raise ConfigError(f"--sites goes with job, not with {args.kind}")
    if args.kind == "kit":
        from cordon.cli.kit import check_kit

        return check_kit(args.path, args.pin, args.json)
    if args.pin is not None:
        raise ConfigError(f"--pin goes with kit, not with {args.kind}")
    if args.kind == "job":
        return check_job(args.path, args.sites, args.json)
    digest = _CHECKS[args.kind](args.path)
    if args.json:
        print(json.dumps({"kind": args.kind, "path": str(args.path), "ok": True, "digest": digest}))
    else:
        print(f"{args.path}: fits {args.kind}; digest {digest}")
    return 0


def _document_digest(schema: type[msgspec.Struct]) -> Callable[[Path], str]:
    return lambda path: documents.content_digest(documents.load(path, schema))


def _contract_digest(path: Path) -> str:
    """The digest that study contracts and site policies list."""
    documents.load(path, contract.FeatureContract)
    return job.contract_digest(documents.read_bytes(path))


def _coordinator_digest(path: Path) -> str:
    from cordon.flare.kit import CoordinatorConfig

    return documents.content_digest(documents.load(path, CoordinatorConfig))


_CHECKS: dict[str, Callable[[Path], str]] = {
    **{kind: _document_digest(schema) for kind, (schema, _) in SIGNED.items()},
    "contract": _contract_digest,
    "coordinator": _coordinator_digest,
}
