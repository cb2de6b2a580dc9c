"""POC only: makes everybody's keys, fills the document templates and signs for all. One person plays all roles here.

Private keys of hospitals (policy, steward), the release key of the lead and the root of the software TEE stay in the
provisioning state, mode 0600; none of them is in a kit. A kit holds its own mTLS key (FLARE's) and its own software TEE
key. The keys of the key broker lie in its own folder beside the kits (``poc_broker``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, signing, study
from cordon import release_key as release
from cordon.attest import policy as attestation
from cordon.attest import software
from cordon.data import contract
from cordon.errors import ConfigError
from cordon.flare import poc_broker
from cordon.flare.kit import SOFTWARE_TEE
from cordon.flare.poc_keys import signing_key, write_bytes, write_private
from cordon.job import contract_digest
from cordon.sealing import KemKey
from cordon.site import policy as site_policy

KEYS = "cordon_keys"
DOCUMENTS = "cordon_documents"
RELEASE_HOLDER = "lead"
LIES = ("flip_labels", "scale_update")  # keys of a policy's unsafe_poc; the rest is being slow
RELEASE_KEY = f"{RELEASE_HOLDER}.release.key"
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
    client_ca: bytes,
    broker: poc_broker.Place | None,
    state: Path,
    now: datetime,
    all_honest: bool = False,
) -> Made:
    """Fill and sign every document of the study, and set up the key broker of the hospitals that keep a vault.

    Args:
        templates: folder with ``study.yml`` (no roster, contracts, release), ``coordinator.yml``, ``<hospital>.yml``
            (no broker), ``mappings/<hospital>.yml``.
        contracts: feature contracts that the study and every site allow.
        policies: participant -> attestation policy.
        certificates: participant -> SPKI (base64 DER) of its mTLS certificate.
        client_ca: PEM of the CA that issued them.
        broker: where the broker listens; None if no hospital has a vault.
        state: FLARE's provisioning state of this workspace.
        all_honest: leave out what the templates say about lies (``unsafe_poc``); slow sites stay slow.
    """
    folder, hospitals = state / DOCUMENTS, [name for name in certificates if name != server]
    digests = [contract_digest(documents.read_bytes(path)) for path in contracts]
    sites = {name: _template(templates / f"{name}.yml", without=("broker",)) for name in hospitals}
    vaulted = [name for name, tree in sites.items() if tree.get("data", {}).get("vault") is not None]
    if vaulted and broker is None:
        raise ConfigError(f"{', '.join(vaulted)}: a vault wants a key broker: give CordonBuilder the argument broker")
    policy_keys = {name: _key(state, f"{name}.policy") for name in hospitals}
    steward_keys = {name: _key(state, f"{name}.steward") for name in hospitals}

    # 1. The study contract, signed by every hospital. It names the brokers' keys, so these come first.
    keeper = poc_broker.prepare(state.parent / poc_broker.FOLDER, broker, vaulted, now) if broker and vaulted else None
    tree = _template(templates / "study.yml", without=("coordinator", "roster", "contracts", "release"))
    tree["coordinator"] = {"name": server, "mtls_spki": certificates[server]}
    tree["roster"] = [
        {
            "name": name,
            "mtls_spki": certificates[name],
            "policy_spki": signing.encode_spki(policy_keys[name].public_key()),
            "steward_spki": signing.encode_spki(steward_keys[name].public_key()),
            "broker_spki": keeper.spki[name] if keeper is not None and name in vaulted else None,
        }
        for name in hospitals
    ]
    tree["contracts"] = digests
    tree["release"] = {
        "holders": {RELEASE_HOLDER: release.encode_public(release_key(state).public_bytes).decode().strip()},
        "persons": 1,
    }
    agreed = _write(folder / "study.yml", tree)
    documents.load(agreed, study.StudyContract)
    for key in policy_keys.values():
        documents.sign_file(agreed, study.SCHEMA, key)

    # 2. Each hospital's policy and mapping.
    for name in hospitals:
        tree = {**sites[name], "allow": {**sites[name].get("allow", {}), "contracts": digests}}
        if all_honest:
            tree = _honest(tree)
        if keeper is not None and name in vaulted:
            tree["broker"] = {"url": keeper.url, "spki": keeper.tls_spki}
        path = _write(folder / f"{name}.yml", tree)
        documents.load(path, site_policy.SitePolicy)
        documents.sign_file(path, site_policy.SCHEMA, policy_keys[name])
        mapping = folder / "mappings" / f"{name}.yml"
        write_bytes(mapping, documents.read_bytes(templates / "mappings" / f"{name}.yml"))
        documents.load(mapping, contract.Mapping)
        documents.sign_file(mapping, contract.MAPPING_SCHEMA, steward_keys[name])

    # 3. The coordinator's config, and the attestation policies, signed by every hospital.
    write_bytes(folder / "coordinator.yml", documents.read_bytes(templates / "coordinator.yml"))
    signed = {}
    for name, source in policies.items():
        signed[name] = write_bytes(folder / "attestation" / source.name, documents.read_bytes(source))
    for path in set(signed.values()):
        for key in policy_keys.values():
            documents.sign_file(path, attestation.SCHEMA, key)

    # 4. The broker: judges a hospital's job process by the policy by which the coordinator does.
    if keeper is not None:
        root = _software_root(state, now).certificate_pem
        limits = {name: documents.load(folder / f"{name}.yml", site_policy.SitePolicy).dp.delta for name in vaulted}
        poc_broker.write(keeper, folder / "study.yml", signed[server], root, client_ca, limits)
    return Made(folder, signed)


def write_tee(state: Path, local: Path, participant: str, now: datetime) -> None:
    """A software TEE key for ``participant`` and the workspace's root certificate, into the kit's ``local`` folder."""
    root = _software_root(state, now)
    tee = software.issue(root, participant, now)
    folder = local / SOFTWARE_TEE
    write_bytes(folder / "root.pem", root.certificate_pem)
    write_bytes(folder / "tee.pem", tee.certificate_pem)
    write_private(folder / "tee.key", tee.key_pem)


def _software_root(state: Path, now: datetime) -> software.Issued:
    """Root of this workspace's software TEE; made once and kept."""
    key, path = _key(state, "software_tee_root"), state / KEYS / "software_tee_root.pem"
    if path.exists():
        return software.Issued(software.load_certificate(documents.read_bytes(path)), key)
    root = software.make_root(state.parent.name, now, key=key)
    path.write_bytes(root.certificate_pem)
    return root


def _key(state: Path, name: str) -> Ed25519PrivateKey:
    """The key ``name`` of this workspace."""
    return signing_key(state / KEYS / f"{name}.key")


def release_key(state: Path) -> KemKey:
    """The key of the lead, who may open this workspace's models (``cordon model open --key``)."""
    path = state / KEYS / RELEASE_KEY
    if path.exists():
        return release.decode_private(documents.read_bytes(path))
    key = KemKey.generate()
    write_private(path, release.encode_private(key))
    return key


def _template(path: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    tree: dict[str, Any] = documents.load(path, dict)
    filled = [key for key in without if key in tree]
    if filled:
        raise ConfigError(f"{path}: a POC template must leave out {', '.join(filled)}: provisioning fills it in")
    return tree


def _honest(policy: dict[str, Any]) -> dict[str, Any]:
    """``policy`` without the lies of its ``unsafe_poc``."""
    unsafe = {key: value for key, value in policy.get("unsafe_poc", {}).items() if key not in LIES}
    kept = {key: value for key, value in policy.items() if key != "unsafe_poc"}
    return {**kept, "unsafe_poc": unsafe} if unsafe else kept


def _write(path: Path, tree: dict[str, Any]) -> Path:
    return write_bytes(path, (_HEADER + yaml.safe_dump(tree, sort_keys=False)).encode())
