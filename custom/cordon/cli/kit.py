"""``cordon spki``, ``cordon pin``, ``cordon check kit``: a hospital's keys and kit, looked at on its own machine.

None of it needs the network, a TEE or the coordinator.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cordon import documents, new_file, signing, study
from cordon.cli.sign import SIGNED
from cordon.errors import ConfigError
from cordon.signing import PublicKey
from cordon.site import pin


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Add the commands of this module to ``cordon``."""
    spki = sub.add_parser("spki", help="print the public key in a file as a study contract names it")
    spki.add_argument("file", type=Path, nargs="+", help="public key, certificate or certificate request (PEM or DER)")
    spki.set_defaults(run=_spki)

    pinning = sub.add_parser(
        "pin",
        help="write the pin: the study that this hospital agreed to, kept outside its kit",
        description="Checks that every hospital of the roster signed the study contract and that it names this "
        "hospital's own policy key, then writes the pin. A production kit starts only where its pin is "
        f"({pin.PATH}).",
    )
    pinning.add_argument("--study", type=Path, required=True, help="study.yml, with study.yml.sig beside it")
    pinning.add_argument("--site", required=True, help="this hospital's name in the roster")
    pinning.add_argument(
        "--policy-key",
        type=Path,
        required=True,
        help="public half of this hospital's policy key, from its own files (cordon keygen --pub)",
    )
    pinning.add_argument("--site-policy", type=Path, help="this hospital's site policy: no older one shall count again")
    pinning.add_argument("--attestation", type=Path, help="its attestation policy, likewise")
    pinning.add_argument("--out", type=Path, required=True, help=f"file to write; a kit looks for {pin.PATH}")
    pinning.set_defaults(run=_pin)


def check_kit(root: Path, pin_file: Path | None, as_json: bool) -> int:
    """``cordon check kit``: all that can be said about a kit before anything in it is run."""
    from cordon.flare.kit import read_kit

    pinned = None if pin_file is None else documents.load(pin_file, pin.Pin)
    kit = read_kit(root, datetime.now(UTC))
    if pinned is not None:
        pin.check(pinned, kit.study, kit.name, str(pin_file), kit.policy_digests)
    if as_json:
        said = {"kind": "kit", "path": str(root), "ok": True, "digest": kit.study.digest, "pinned": pinned is not None}
        print(json.dumps({**said, "role": kit.role, "name": kit.name, "profile": kit.study.profile}))
        return 0
    print(f"{root}: kit of {kit.role} {kit.name}; study {kit.study.study} ({kit.study.profile}), {kit.study.digest}")
    print("signatures, keys and certificate hold; FLARE's files and scripts are those of provisioning, and no others")
    if pinned is None:
        print("no pin was given: whoever made this kit may have written its study contract too")
    else:
        print(f"it is of the study and the policy key that {pin_file} names")
    return 0


def _spki(args: argparse.Namespace) -> int:
    for path in args.file:
        print(f"{path}: {signing.encode_spki(_public_key(path))}")
    return 0


def _pin(args: argparse.Namespace) -> int:
    agreed = study.load_signed(args.study, datetime.now(UTC))
    key = _public_key(args.policy_key)
    policies: dict[pin.PolicyKind, str] = {}
    if args.site_policy is not None:
        policies["site"] = _digest("site", args.site_policy, key)
    if args.attestation is not None:
        policies["attestation"] = _digest("attestation", args.attestation, key)
    made = pin.make(agreed, args.site, key, policies)
    new_file.write(args.out, yaml.safe_dump(msgspec.to_builtins(made), sort_keys=False).encode(), 0o644)
    print(f"{args.out}: pins {args.site} to study {agreed.study}, signed by all {len(agreed.roster)} hospitals")
    print(f"digest: {made.study_digest}\nread it out to the other hospitals: theirs must be the same")
    return 0


def _digest(kind: str, path: Path, key: PublicKey) -> str:
    """Content digest of a policy that this hospital signed."""
    schema, name = SIGNED[kind]
    return documents.content_digest(documents.load_signed(path, schema, name, [key], datetime.now(UTC)))


def _public_key(path: Path) -> PublicKey:
    """The public key in ``path``; a certificate request must be signed by it."""
    data = documents.read_bytes(path)
    try:
        return signing.load_public_key(data)
    except ConfigError as error:
        load = x509.load_pem_x509_csr if b"-----BEGIN" in data else x509.load_der_x509_csr
        try:
            request = load(data)
            if not request.is_signature_valid:
                raise ConfigError(f"{path}: this certificate request is not signed by its own key")
            return signing.load_public_key(
                request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            )
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as no_request:
            raise ConfigError(f"{path}: {error}") from no_request
