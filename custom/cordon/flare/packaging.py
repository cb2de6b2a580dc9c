"""Checks the signed documents of a study and copies them into kits: the same code for POC and production.

The folder holds ``study.yml``, ``coordinator.yml``, ``<hospital>.yml`` and ``mappings/<hospital>.yml``, each hospital's
files with a ``.sig``; where wanted, ``vek/<participant>.crt`` and ``collateral/``. What a kit gets is what was signed,
byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import yaml

from cordon import documents, signing, study
from cordon.attest import collateral
from cordon.attest import policy as attestation
from cordon.attest.policy import AttestationPolicy
from cordon.data import contract
from cordon.errors import ConfigError
from cordon.flare import authorizers
from cordon.flare.authorizers import TeeEnvironment
from cordon.flare.cc_profile import CCConfig
from cordon.flare.kit import (
    COLLATERAL,
    CoordinatorConfig,
    check_brokers,
    check_profile,
    check_site_policy,
    load_agreed_policy,
)
from cordon.site import policy as site_policy
from cordon.site.policy import SitePolicy
from cordon.study import StudyContract


def check_study(
    folder: Path, profile: str, server: str, certificates: Mapping[str, str], now: datetime, everybody: bool = True
) -> StudyContract:
    """The study contract in ``folder``, if it is signed by all and of just these participants with just these keys.

    Args:
        certificates: participant -> SPKI (base64 DER) of the certificate that its kit holds.
        everybody: whether ``certificates`` are those of all members. False where one member makes its own kit.
    """
    path = folder / "study.yml"
    agreed = study.load_signed(path, now)
    if agreed.profile != profile:
        raise ConfigError(f"{path}: profile {agreed.profile}, this project's is {profile}")
    check_brokers(agreed, path)
    members = {agreed.coordinator.name: agreed.coordinator.mtls_key}
    members |= {hospital.name: hospital.mtls_key for hospital in agreed.roster}
    got = f"is between {', '.join(sorted(members))}, led by {agreed.coordinator.name}"
    if agreed.coordinator.name != server:
        raise ConfigError(f"{path}: {got}; this project's server is {server}")
    if not set(certificates) <= set(members) or (everybody and set(members) != set(certificates)):
        raise ConfigError(
            f"{path}: {got}; this project makes kits for {', '.join(sorted(certificates))}. To change the members, "
            "move study.yml and its signature out of the folder: the next run issues certificates for a new contract"
        )
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


def pack_coordinator(folder: Path, policy_path: Path, local: Path, agreed: StudyContract, now: datetime) -> None:
    """Put study, config and attestation policy (signed by all hospitals) into the coordinator's ``local``."""
    path = folder / "coordinator.yml"
    config = documents.load(path, CoordinatorConfig)
    if config.name != agreed.coordinator.name:
        raise ConfigError(f"{path}: is of {config.name}, the study's coordinator is {agreed.coordinator.name}")
    if config.evaluation.source is not None and agreed.evaluation.kind == "none":
        raise ConfigError(f"{path}: has evaluation data, the study contract allows none")
    check_profile(load_agreed_policy(policy_path, agreed, now), agreed, policy_path)
    _copy(folder / "study.yml", local / "study.yml")
    _copy(path, local / "coordinator.yml")
    _copy(policy_path, _inside(local, config.attestation.policy, path))


def pack_tee(folder: Path, local: Path, name: str, config: CCConfig) -> None:
    """Write ``tee.yml``: what makes this participant's evidence. Beside it ``vek/<name>.crt``, if it was handed in."""
    vek = folder / "vek" / f"{name}.crt"
    environment = {
        "version": authorizers.SCHEMA,
        "evidence": config.evidence,
        "gpu": "none" if config.cc_gpu_mechanism is None else "nvidia",
        "device": config.evidence_device,
        "vek": "vek.crt" if vek.exists() else None,
    }
    text = yaml.safe_dump(environment, sort_keys=False).encode()
    documents.parse(text, TeeEnvironment, f"{name}: {authorizers.FILE}")
    (local / authorizers.FILE).write_bytes(text)
    if vek.exists():
        _copy(vek, local / "vek.crt")


def pack_collateral(folder: Path, local: Path) -> None:
    """Copy vendors' statements (CRLs, Intel's collateral, RIM files) from ``collateral/``, if there are any.

    They age, so whoever looks after the site also puts fresh ones into the kit later.
    """
    source = folder / COLLATERAL
    if source.is_dir():
        collateral.read(source)
        shutil.copytree(source, local / COLLATERAL, dirs_exist_ok=True)


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
