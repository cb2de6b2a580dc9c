"""Checks the signed documents of a study and copies them into kits: the same code for POC and production.

The folder holds ``study.yml``, ``coordinator.yml``, ``<hospital>.yml`` and ``mappings/<hospital>.yml``, each hospital's
files with a ``.sig``. What a kit gets is what was signed, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cordon import documents, signing, study
from cordon.attest import policy as attestation
from cordon.attest.policy import AttestationPolicy
from cordon.data import contract
from cordon.errors import ConfigError
from cordon.flare.kit import CoordinatorConfig, check_profile, check_site_policy
from cordon.site import policy as site_policy
from cordon.site.policy import SitePolicy
from cordon.study import StudyContract


def check_study(
    folder: Path, profile: str, server: str, certificates: Mapping[str, str], now: datetime
) -> StudyContract:
    """The study contract in ``folder``, if it is signed by all and of just these participants with just these keys.

    Args:
        certificates: participant -> SPKI (base64 DER) of the certificate that its kit holds.
    """
    path = folder / "study.yml"
    agreed = study.load_signed(path, now)
    if agreed.profile != profile:
        raise ConfigError(f"{path}: profile {agreed.profile}, this project's is {profile}")
    members = {agreed.coordinator.name: agreed.coordinator.mtls_key}
    members |= {hospital.name: hospital.mtls_key for hospital in agreed.roster}
    if agreed.coordinator.name != server or set(members) != set(certificates):
        wanted, got = ", ".join(sorted(certificates)), ", ".join(sorted(members))
        raise ConfigError(f"{path}: is between {got}, led by {agreed.coordinator.name}; this project has {wanted}")
    for name, spki in certificates.items():
        if signing.spki_digest(signing.decode_spki(spki)) != signing.spki_digest(members[name]):
            raise ConfigError(f"{path}: names another mTLS key for {name} than the certificate in its kit")
    return agreed


def pack_hospital(
    folder: Path, policy_path: Path, local: Path, name: str, agreed: StudyContract, now: datetime
) -> SitePolicy:
    """Put study, policies and mapping of hospital ``name`` into ``local``; returns the site policy."""
    hospital = agreed.hospital(name)
    keys = [hospital.policy_key]
    path = folder / f"{name}.yml"
    policy = documents.load_signed(path, SitePolicy, site_policy.SCHEMA, keys, now)
    check_site_policy(policy, name, agreed, path)
    judged_by = documents.load_signed(policy_path, AttestationPolicy, attestation.SCHEMA, keys, now)
    check_profile(judged_by, agreed, policy_path)
    _copy(folder / "study.yml", local / "study.yml")
    _copy(path, local / "cordon.yml")
    _copy(policy_path, _inside(local, policy.attestation.policy, path))

    mapping_path = folder / "mappings" / f"{name}.yml"
    target = _inside(local, policy.data.mapping, path)
    if mapping_path.exists():  # a hospital may also put it into its kit later: only jobs need it
        mapping = documents.load_signed(
            mapping_path, contract.Mapping, contract.MAPPING_SCHEMA, [hospital.steward_key], now
        )
        if target.stem != mapping.contract.replace("/", "-"):
            raise ConfigError(f"{path}: data.mapping is {policy.data.mapping}, the mapping is for {mapping.contract}")
        _copy(mapping_path, target)
    return policy


def pack_coordinator(folder: Path, policy_path: Path, local: Path, agreed: StudyContract) -> None:
    """Put study, coordinator config and attestation policy into the coordinator's ``local``."""
    path = folder / "coordinator.yml"
    config = documents.load(path, CoordinatorConfig)
    if config.name != agreed.coordinator.name:
        raise ConfigError(f"{path}: is of {config.name}, the study's coordinator is {agreed.coordinator.name}")
    if config.evaluation.source is not None and agreed.evaluation.kind == "none":
        raise ConfigError(f"{path}: has evaluation data, the study contract allows none")
    check_profile(documents.load(policy_path, AttestationPolicy), agreed, policy_path)
    _copy(folder / "study.yml", local / "study.yml")
    _copy(path, local / "coordinator.yml")
    _copy(policy_path, _inside(local, config.attestation.policy, path))


def _inside(local: Path, name: str, said_in: Path) -> Path:
    """``name`` within the kit's local folder: what a kit holds is written nowhere else."""
    target = (local / name).resolve()
    if not target.is_relative_to(local.resolve()):
        raise ConfigError(f"{said_in}: {name!r} is outside the kit's local folder")
    return target


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    signature = documents.signature_path(source)
    if signature.exists():
        shutil.copyfile(signature, documents.signature_path(target))
