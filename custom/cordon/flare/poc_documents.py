"""POC only: makes everybody's keys, fills the document templates and signs for all. One person plays all roles here.

Private keys of hospitals (policy, steward) and the root of the software TEE stay in the provisioning state, mode 0600;
none of them is in a kit. A kit holds its own mTLS key (FLARE's) and its own software TEE key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, signing, study
from cordon.attest import policy as attestation
from cordon.attest import software
from cordon.data import contract
from cordon.errors import ConfigError
from cordon.flare.kit import SOFTWARE_TEE
from cordon.job import contract_digest
from cordon.site import policy as site_policy

KEYS = "cordon_keys"
DOCUMENTS = "cordon_documents"
_HEADER = "# Made for this POC workspace from the template of the same name; any change breaks its signature.\n"


@dataclass(frozen=True)
class Made:
    """Where the signed documents lie, and the signed attestation policy of each participant."""

    folder: Path
    policies: dict[str, Path]


def make(
    *,
    templates: Path,
    contracts: list[Path],
    policies: Mapping[str, Path],
    server: str,
    certificates: Mapping[str, str],
    state: Path,
) -> Made:
    """Fill and sign every document of the study.

    Args:
        templates: folder with ``study.yml`` (no roster, no contracts), ``coordinator.yml``, ``<hospital>.yml``,
            ``mappings/<hospital>.yml``.
        contracts: feature contracts that the study and every site allow.
        policies: participant -> attestation policy.
        certificates: participant -> SPKI (base64 DER) of its mTLS certificate.
        state: FLARE's provisioning state of this workspace.
    """
    folder, hospitals = state / DOCUMENTS, [name for name in certificates if name != server]
    digests = [contract_digest(documents.read_bytes(path)) for path in contracts]
    policy_keys = {name: _key(state, f"{name}.policy") for name in hospitals}
    steward_keys = {name: _key(state, f"{name}.steward") for name in hospitals}

    # 1. The study contract, signed by every hospital.
    tree = _template(templates / "study.yml", without=("coordinator", "roster", "contracts"))
    tree["coordinator"] = {"name": server, "mtls_spki": certificates[server]}
    tree["roster"] = [
        {
            "name": name,
            "mtls_spki": certificates[name],
            "policy_spki": signing.encode_spki(policy_keys[name].public_key()),
            "steward_spki": signing.encode_spki(steward_keys[name].public_key()),
        }
        for name in hospitals
    ]
    tree["contracts"] = digests
    agreed = _write(folder / "study.yml", tree)
    documents.load(agreed, study.StudyContract)
    for key in policy_keys.values():
        documents.sign_file(agreed, study.SCHEMA, key)

    # 2. Each hospital's policy and mapping.
    for name in hospitals:
        tree = _template(templates / f"{name}.yml")
        tree["allow"] = {**tree.get("allow", {}), "contracts": digests}
        path = _write(folder / f"{name}.yml", tree)
        documents.load(path, site_policy.SitePolicy)
        documents.sign_file(path, site_policy.SCHEMA, policy_keys[name])
        mapping = folder / "mappings" / f"{name}.yml"
        _write_bytes(mapping, documents.read_bytes(templates / "mappings" / f"{name}.yml"))
        documents.load(mapping, contract.Mapping)
        documents.sign_file(mapping, contract.MAPPING_SCHEMA, steward_keys[name])

    # 3. The coordinator's config, and the attestation policies, signed by every hospital.
    _write_bytes(folder / "coordinator.yml", documents.read_bytes(templates / "coordinator.yml"))
    signed = {}
    for name, source in policies.items():
        signed[name] = _write_bytes(folder / "attestation" / source.name, documents.read_bytes(source))
    for path in set(signed.values()):
        for key in policy_keys.values():
            documents.sign_file(path, attestation.SCHEMA, key)
    return Made(folder, signed)


def write_tee(state: Path, local: Path, participant: str, now: datetime) -> None:
    """A software TEE key for ``participant`` and the workspace's root certificate, into the kit's ``local`` folder."""
    key, certificate_path = _key(state, "software_tee_root"), state / KEYS / "software_tee_root.pem"
    if certificate_path.exists():
        root = software.Issued(software.load_certificate(documents.read_bytes(certificate_path)), key)
    else:
        root = software.make_root(state.parent.name, now, key=key)
        certificate_path.write_bytes(root.certificate_pem)
    tee = software.issue(root, participant, now)
    folder = local / SOFTWARE_TEE
    _write_bytes(folder / "root.pem", root.certificate_pem)
    _write_bytes(folder / "tee.pem", tee.certificate_pem)
    _write_private(folder / "tee.key", tee.key_pem)


def _key(state: Path, name: str) -> Ed25519PrivateKey:
    """The key ``name`` of this workspace; made once and kept, so that re-provisioning changes no identity."""
    path = state / KEYS / f"{name}.key"
    if path.exists():
        key = signing.load_private_key(documents.read_bytes(path))
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path}: not an Ed25519 key")
        return key
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_private(path, pem)
    return key


def _template(path: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    tree: dict[str, Any] = documents.load(path, dict)
    filled = [key for key in without if key in tree]
    if filled:
        raise ConfigError(f"{path}: a POC template must leave out {', '.join(filled)}: provisioning fills it in")
    return tree


def _write(path: Path, tree: dict[str, Any]) -> Path:
    return _write_bytes(path, (_HEADER + yaml.safe_dump(tree, sort_keys=False)).encode())


def _write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _write_private(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
