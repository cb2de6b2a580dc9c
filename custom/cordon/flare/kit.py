"""A startup kit as Cordon reads it: who this process is, what it may do, whom it trusts. All of it checked, or nothing.

Both sides load it at start and again in each job process. Everything that decides is signed: the study contract by all
hospitals, site and attestation policy and mapping by this hospital. What FLARE acts on is not signed by anybody who
would count, so it must be what provisioning writes, and nothing may lie beside it (``kit_contents``). A file that is
missing, changed, too many or of another project stops the process with that file's name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from cordon import documents, signing, study
from cordon.attest import collateral, standing
from cordon.attest import policy as attestation
from cordon.attest.claims import Attester
from cordon.attest.policy import AttestationPolicy
from cordon.attest.standing import Standing
from cordon.attest.vendor import Trust
from cordon.data.contract import MAPPING_SCHEMA, FeatureContract, Mapping
from cordon.documents import Document
from cordon.errors import ConfigError, MappingError, SignatureError
from cordon.flare import kit_contents
from cordon.flare.authorizers import TeeEnvironment, attester_for
from cordon.flare.kit_contents import Expected
from cordon.site import pin
from cordon.site import policy as site_policy
from cordon.site.policy import Attestation, SitePolicy
from cordon.study import Name, StudyContract

if TYPE_CHECKING:
    from cordon.job import Job

SOFTWARE_TEE = "software_tee"  # folder in local/, POC only
TEE_FILE = "tee.yml"  # in local/
VEK_FILE = "vek.crt"  # in local/
COLLATERAL = "collateral"  # folder in local/
STANDING_FILE = "attestation_standing.json"  # in the kit's root, by the parent process for its job processes

Role = Literal["coordinator", "hospital"]


class EvaluationData(Document, frozen=True, kw_only=True):
    """The reference set that the study contract names; resolves against the config's folder. None: no evaluation."""

    source: str | None


class CoordinatorConfig(Document, frozen=True, kw_only=True):
    """The coordinator's own settings (``local/coordinator.yml``)."""

    version: Literal["cordon/coordinator/v1"]
    name: Name
    attestation: Attestation
    evaluation: EvaluationData


@dataclass(frozen=True)
class KitDocuments:
    """What a kit says, checked. ``policy`` is set for a hospital, ``coordinator`` for the coordinator."""

    root: Path
    name: str
    role: Role
    study: StudyContract
    policy: SitePolicy | None
    coordinator: CoordinatorConfig | None
    mtls_key: signing.PrivateKey
    trust: Trust
    now: datetime

    @property
    def local(self) -> Path:
        """The folder against which policies resolve their paths."""
        return self.root / "local"

    @property
    def attest_policy(self) -> AttestationPolicy:
        """By which this side judges its peers."""
        return self.trust.policy

    @property
    def attest_policy_digest(self) -> str:
        """Named in this side's challenges, and by the evidence that answers them."""
        return self.trust.policy.digest

    @property
    def policy_digests(self) -> dict[pin.PolicyKind, str]:
        """Content digests of this hospital's policies, as a pin names them."""
        digests: dict[pin.PolicyKind, str] = {"attestation": self.trust.policy.digest}
        if self.policy is not None:
            digests["site"] = documents.content_digest(self.policy)
        return digests

    def fresh_trust(self) -> tuple[Trust, str]:
        """``trust`` with the collateral that lies in the kit now; and why it is still the old one, '' if it is not."""
        try:
            return replace(self.trust, collateral=collateral.read(self.local / COLLATERAL)), ""
        except ConfigError as error:
            return self.trust, str(error)

    def standing(self, peer: str) -> Standing:
        """Where ``peer`` stands with this kit's parent process; for its job processes. Without word: unattested."""
        try:
            return standing.read(self.root / STANDING_FILE).get(peer, standing.UNKNOWN)
        except ConfigError:
            return standing.UNKNOWN

    @property
    def evaluation_source(self) -> Path | None:
        """The coordinator's reference set, if it has one."""
        source = self.coordinator.evaluation.source if self.coordinator else None
        return (self.local / source).resolve() if source else None

    def mapping(self, job: Job) -> Mapping:
        """This hospital's mapping for the contract of ``job``, confirmed by its data steward.

        Raises:
            MappingError: missing, unsigned, changed, or for another contract or connector; says how to mend it.
        """
        contract = documents.parse(job.contract, FeatureContract, f"job {job.name}: contract.yml")
        if self.policy is None:
            raise ConfigError(f"{self.name} is the coordinator: it has no patient data and no mapping")
        path = self.policy.resolve(self.local, self.policy.data.mapping)
        how = (
            f"wanted: a mapping of this site's {self.policy.data.connector} data to {contract.contract}, signed by its "
            f"data steward: cordon sign --key STEWARD_KEY --as mapping {path}"
        )
        if not path.exists():
            raise MappingError(f"{path}: missing; {how}")
        try:
            mapping = documents.load_signed(
                path, Mapping, MAPPING_SCHEMA, [self.study.hospital(self.name).steward_key], self.now
            )
        except (SignatureError, ConfigError) as error:
            raise MappingError(f"{error}; {how}") from error
        if mapping.contract != contract.contract or mapping.connector != self.policy.data.connector:
            raise MappingError(f"{path}: maps {mapping.connector} data to {mapping.contract}; {how}")
        return mapping


@dataclass(frozen=True)
class Kit(KitDocuments):
    """A checked kit on the machine that makes its evidence."""

    attester: Attester


def load_kit(root: Path, now: datetime) -> Kit:
    """The kit at ``root`` (the folder with ``startup/`` and ``local/``), if it may start on this machine.

    Raises:
        ConfigError: as ``read_kit``; no pin for a hospital's production kit; the TEE that it names is not here.
        SignatureError: as ``read_kit``; the kit is of another study or policy key than the hospital pinned here.
    """
    read = read_kit(root, now)
    if read.role == "hospital":
        pin.check_start(read.root, read.study, read.name, os.environ, policies=read.policy_digests)
    return Kit(**vars(read), attester=_attester(read.local, read.name, read.study))


def read_kit(root: Path, now: datetime) -> KitDocuments:
    """What the kit at ``root`` says, wherever it lies: no TEE and no pin is asked for.

    Raises:
        ConfigError: a file is missing or does not fit, or the kit is of another project, or it holds a file or a
            setting of FLARE's that provisioning does not write.
        SignatureError: a document is unsigned, changed, or signed by the wrong key.
    """
    root = root.resolve()
    local = root / "local"
    role, base = _role(root)
    agreed = study.load_signed(local / "study.yml", now)
    check_brokers(agreed, local / "study.yml")
    name, mtls_key = _identity(root / "startup" / base, role, agreed)

    policy: SitePolicy | None = None
    coordinator: CoordinatorConfig | None = None
    if role == "hospital":
        keys = [agreed.hospital(name).policy_key]
        policy = documents.load_signed(local / "cordon.yml", SitePolicy, site_policy.SCHEMA, keys, now)
        check_site_policy(policy, name, agreed, local / "cordon.yml")
        path = policy.resolve(local, policy.attestation.policy)
        judged_by = documents.load_signed(path, AttestationPolicy, attestation.SCHEMA, keys, now)
    else:
        coordinator = documents.load(local / "coordinator.yml", CoordinatorConfig)
        if coordinator.name != name:
            raise ConfigError(
                f"{local / 'coordinator.yml'}: is of {coordinator.name}, this kit's certificate of {name}"
            )
        path = (local / coordinator.attestation.policy).resolve()
        judged_by = load_agreed_policy(path, agreed, now)

    check_profile(judged_by, agreed, path)
    names = ["study.yml", TEE_FILE, VEK_FILE, "coordinator.yml" if policy is None else "cordon.yml"]
    if agreed.profile == "poc":
        names += [f"{SOFTWARE_TEE}/{each}.{kind}" for each, kind in (("root", "pem"), ("tee", "pem"), ("tee", "key"))]
    files = [path, *(local / each for each in names)]
    log_streaming: bool | None = None
    if policy is not None:
        files.append(policy.resolve(local, policy.data.mapping))
        log_streaming = policy.egress.log_streaming
    expected = Expected(role, name, agreed.coordinator.name, log_streaming, tuple(files), (local / COLLATERAL,))
    kit_contents.check(root, expected)
    return KitDocuments(
        root=root,
        name=name,
        role=role,
        study=agreed,
        policy=policy,
        coordinator=coordinator,
        mtls_key=mtls_key,
        trust=Trust(judged_by, collateral.read(local / COLLATERAL), _software_root(judged_by, path)),
        now=now,
    )


def load_agreed_policy(path: Path, agreed: StudyContract, now: datetime) -> AttestationPolicy:
    """The policy by which the coordinator judges hospitals, signed by all of them: it decides who takes part with them.

    It also settles which policy is in force when the coordinator accuses a site (``cordon.attest.fault``).
    """
    keys = [hospital.policy_key for hospital in agreed.roster]
    return documents.load_signed(path, AttestationPolicy, attestation.SCHEMA, keys, now, threshold=len(keys))


def check_site_policy(policy: SitePolicy, name: str, agreed: StudyContract, path: Path) -> None:
    """ConfigError unless ``policy`` is of hospital ``name`` and allows nothing unsafe outside POC."""
    if policy.site != name:
        raise ConfigError(f"{path}: is the policy of {policy.site}, this kit's certificate is of {name}")
    if agreed.profile != "poc":
        unsafe = {"unsafe_poc": policy.unsafe_poc, "data.unsafe_source": policy.data.unsafe_source}
        if used := [name for name, value in unsafe.items() if value is not None]:
            raise ConfigError(
                f"{path}: {', '.join(used)} is refused outside POC; the study's profile is {agreed.profile}"
            )
    named = agreed.hospital(name).broker_spki is not None
    if policy.broker is not None and not named:
        raise ConfigError(f"{path}: names a broker, and the study contract no broker_spki for {name}")
    if policy.broker is None and named:  # its updates would carry no ledger head: faults, and it would be excluded
        raise ConfigError(f"{path}: names no broker, and the study contract a broker_spki for {name}")


def check_brokers(agreed: StudyContract, path: Path) -> None:
    """ConfigError unless, outside POC, every hospital has a key broker: the coordinator wants its ledger head."""
    without = [hospital.name for hospital in agreed.roster if hospital.broker_spki is None]
    if without and agreed.profile != "poc":
        raise ConfigError(f"{path}: no broker_spki for {', '.join(without)}; outside POC every hospital has one")


def check_profile(policy: AttestationPolicy, agreed: StudyContract, path: Path) -> None:
    """ConfigError unless the attestation policy is of the study's profile."""
    if policy.profile != agreed.profile:
        raise ConfigError(f"{path}: profile {policy.profile}, the study's is {agreed.profile}")


def _role(root: Path) -> tuple[Role, str]:
    """(role, base name of certificate and key), from the file that FLARE itself starts from."""
    found = [name for name in ("fed_server.json", "fed_client.json") if (root / "startup" / name).exists()]
    if len(found) != 1:
        raise ConfigError(f"{root}: not a startup kit: want one of startup/fed_server.json, startup/fed_client.json")
    return ("coordinator", "server") if found[0] == "fed_server.json" else ("hospital", "client")


def _identity(base: Path, role: Role, agreed: StudyContract) -> tuple[str, signing.PrivateKey]:
    """(name, mTLS key) of this kit; both must be those that the study contract names."""
    certificate_path, key_path = base.with_suffix(".crt"), base.with_suffix(".key")
    try:
        certificate = x509.load_pem_x509_certificate(documents.read_bytes(certificate_path))
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{certificate_path}: not a certificate with a common name") from error
    mtls_key = signing.load_private_key(documents.read_bytes(key_path))
    spki = signing.spki_digest(mtls_key.public_key())
    if signing.spki_digest(signing.load_public_key(documents.read_bytes(certificate_path))) != spki:
        raise ConfigError(f"{key_path}: not the key of {certificate_path.name}")
    try:
        member = agreed.coordinator if role == "coordinator" else agreed.hospital(name)
    except ConfigError as error:
        raise ConfigError(f"{certificate_path}: kit of another project: {error}") from error
    if member.name != name or signing.spki_digest(member.mtls_key) != spki:
        raise ConfigError(
            f"{certificate_path}: kit of another project: study {agreed.study} knows {member.name} by another key "
            f"({signing.spki_digest(member.mtls_key)[:16]}...) than this kit's {name} ({spki[:16]}...)"
        )
    return name, mtls_key


def _software_root(policy: AttestationPolicy, path: Path) -> x509.Certificate | None:
    if policy.software == "none":
        return None
    from cordon.attest import software

    return software.load_certificate(documents.read_bytes(path.parent / policy.software.root))


def _attester(local: Path, name: str, agreed: StudyContract) -> Attester:
    """What makes this process's own evidence: the TEE that ``tee.yml`` names, or the software TEE of a POC kit."""
    environment = local / TEE_FILE
    if environment.exists():
        return attester_for(documents.load(environment, TeeEnvironment), local)
    folder = local / SOFTWARE_TEE
    if agreed.profile != "poc":
        raise ConfigError(f"{environment}: missing; a kit outside POC says there what makes its evidence")
    from cordon.attest import software

    attester = software.load_attester(
        documents.read_bytes(folder / "tee.pem"), documents.read_bytes(folder / "tee.key")
    )
    holder = attester.tee.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [each.value for each in holder] != [name]:
        raise ConfigError(f"{folder / 'tee.pem'}: not the TEE key of {name}")
    return attester
