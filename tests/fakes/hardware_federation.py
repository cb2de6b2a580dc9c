"""A production federation in one process: kits that name real TEEs, on machines whose devices are made up.

All that decides is the product's: documents, packing, kits, pins, attesters, CC manager, verifiers. Made up are the
vendors (``amd_pki``, ``intel_pki``, ``nvidia_pki``) and the devices below ``cordon.flare.devices`` and ``nvml``. The
vendors' roots are put in at one place, ``cordon.attest.roots.load``; nothing in the product takes other ones.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from nvflare.fuel.f3.cellnet.defs import ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from cordon import documents, signing
from cordon.attest import collateral, fault, roots
from cordon.attest.appraise import EVIDENCE_TYPE
from cordon.attest.policy import AttestationPolicy
from cordon.attest.snp import certificates
from cordon.attest.vendor import Trust
from cordon.flare import admission, authorizers, cc_manager, devices, nvml, packaging, poc_documents, session
from cordon.flare.audit import AUDIT_FILE
from cordon.flare.cc_profile import CCConfig
from cordon.flare.devices import TsmReport
from cordon.flare.kit import COLLATERAL, Kit, load_kit, read_kit
from cordon.flare.nvml import GpuReport
from cordon.site import pin
from cordon.study import StudyContract

from . import amd_pki, azure_pki, federation_kits, intel_pki, tee_devices
from .federation_kits import CONTRACT, ROOT, SERVER, mtls_key
from .intel_pki import IntelPki, changed
from .nvidia_pki import Device, NvidiaPki
from .policies import policy
from .stock_flare import CordonFederation
from .tee_devices import FakeTpm, FakeTsm, cert_table

NOW = intel_pki.NOW  # all that the made-up vendors sign holds then
DAY = timedelta(days=1)
CLOUD = "CN=cc-eu.example.com"
MEASUREMENT = "13" * 48
HONEST, ROGUE, THIRD = "hospital-a", "hospital-b", "hospital-c"
HOSPITALS = (HONEST, ROGUE, THIRD)

INTEL = IntelPki()


@functools.cache
def nvidia() -> NvidiaPki:
    """The one made-up NVIDIA."""
    return NvidiaPki()


def vendor_root(name: str) -> x509.Certificate:
    """What ``roots.load`` gives instead of the embedded certificate."""
    vendor, part, *role = name.split("_")
    if vendor == "amd":
        made: x509.Certificate = getattr(amd_pki.anchor(part.capitalize()), role[0])
        return made
    if vendor == "intel":
        return INTEL.root
    return {"device": nvidia().root, "rim": nvidia().rim_root}[part].certificate


# -- machines --------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """One participant's confidential VM, down to its devices; what a test changes counts from the next report on.

    Args:
        chip: name of its processor: each has its own key and CHIP_ID.
        report: fields of the SNP report or TD report that differ from the released image's.
        bytes_: keywords of ``amd_pki.report`` that set bytes by offset.
        vek: keywords of ``amd_pki.vek`` that differ.
        host: what the host shows the guest instead of its processor's certificates.
    """

    evidence: Literal["snp", "tdx", "az-snp", "az-tdx"] = "snp"
    product: str = "Genoa"
    signer: str = "vcek"
    chip: str = "chip"
    gpus: list[Device] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    bytes_: dict[str, Any] = field(default_factory=dict)
    vek: dict[str, Any] = field(default_factory=dict)
    host: bytes | None = None

    def confidential(self, device: str, root: Path = Path("/")) -> None:
        """As ``devices.require`` inside the VM."""

    def tsm_report(self, report_data: bytes, provider: str | None = None) -> TsmReport:
        """Through the real device layer down to the kernel's files."""
        speaks = "sev_guest" if self.evidence == "snp" else "tdx_guest"
        return devices.tsm_report(report_data, provider=provider, files=FakeTsm(self._make, speaks))

    def gpu_reports(self, nonce: bytes) -> list[GpuReport]:
        """As ``nvml.gpu_reports``."""
        return [GpuReport(f"GPU-{n}", each.arch, each.report(nonce), each.chain) for n, each in enumerate(self.gpus)]

    def _make(self, report_data: bytes, _privlevel: int) -> tuple[bytes, bytes | None]:
        if self.evidence == "tdx":
            return INTEL.quote(intel_pki.td_report("1.5", report_data=report_data, **self.report), version=5), None
        return self.snp_report(report_data), self.host if self.host is not None else self.certificates()

    def snp_report(self, report_data: bytes) -> bytes:
        """The processor's report."""
        own = {} if self.signer == "vlek" else {"key": self._key(), "chip_id": self.chip_id}
        given = {"report_data": report_data, **own, **self.report}
        return amd_pki.report(self.product, self.signer, 5, **given, **self.bytes_)

    def certificates(self) -> bytes:
        """The host's table: the key that signs, and what AMD issued it under."""
        guid = tee_devices.VCEK if self.signer == "vcek" else tee_devices.VLEK
        anchor = amd_pki.anchor(self.product)
        entries = [(guid, self.vek_der), (tee_devices.ASK, der(anchor.ask)), (tee_devices.ARK, der(anchor.ark))]
        return cert_table(entries)

    @property
    def vek_der(self) -> bytes:
        """VCEK of this chip, or VLEK of the cloud."""
        own: dict[str, Any] = {"since": NOW - 100 * DAY, "until": NOW + 265 * DAY}
        if self.signer == "vcek":
            own |= {"key": self._key(), "extensions": {"4": self.chip_id}}
        return der(amd_pki.vek(self.product, self.signer, **{**own, **self.vek}))

    @property
    def chip_id(self) -> bytes:
        return hashlib.sha512(self.chip.encode()).digest()

    def _key(self) -> Any:
        return amd_pki.chip_key(f"{self.product}/{self.chip}")


@dataclass
class AzureMachine(Machine):
    """A confidential VM on Azure: the hardware's report is the paravisor's, our bytes go through the virtual TPM.

    Args:
        claims: runtime claims that differ.
        pcrs: what the virtual TPM measured.
        signer_of_quotes: name of the key that makes TPM quotes; "ak" is the one in the claims.
    """

    claims: dict[str, Any] = field(default_factory=dict)
    pcrs: tuple[bytes, ...] = azure_pki.PCRS
    signer_of_quotes: str = "ak"
    tpm: FakeTpm = field(init=False)

    def __post_init__(self) -> None:
        self.tpm = FakeTpm(self._hcl_report)

    def run_tool(self, command: list[str], given: bytes) -> bytes:
        """As ``vtpm.run_tool``."""
        if command[0] == "tpm2_quote":
            quote = azure_pki.tpm_quote(
                bytes.fromhex(command[command.index("-q") + 1]), self.pcrs, self.signer_of_quotes
            )
            self.tpm.quote = (quote.message, quote.signature, b"".join(self.pcrs))
        return self.tpm(command, given)

    def fetch(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """As ``vtpm.imds``: the host's word."""
        if path.endswith("/certification"):
            anchor = amd_pki.anchor(self.product)
            chain = amd_pki.pem(anchor.ask, anchor.ark).decode()
            vek = amd_pki.pem(x509.load_der_x509_certificate(self.vek_der)).decode()
            return json.dumps({"vcekCert": vek, "certificateChain": chain}).encode()
        given = json.loads(body or b"")["report"]
        report = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
        quote = INTEL.quote(report[264:384] + report[512:912] + report[128:192])
        return json.dumps({"quote": base64.urlsafe_b64encode(quote).decode().rstrip("=")}).encode()

    def _hcl_report(self, user_data: bytes) -> bytes:
        claims = azure_pki.encode(azure_pki.runtime_claims(user_data, **self.claims))
        bound = azure_pki.report_data(claims)
        if self.evidence == "az-snp":
            return azure_pki.hcl_report(self.snp_report(bound), claims)
        body = intel_pki.td_report(**{"report_data": bound, "td_attributes": bytes(8), **self.report})
        return azure_pki.hcl_report(tdreport(body), claims, "tdx")


def tdreport(body: bytes) -> bytes:
    """TDREPORT_STRUCT (Intel TDX Module ABI) that says what the body of a TD quote 1.0 says. Its MAC is zero."""
    tee_tcb_info = bytes(8) + body[:120] + bytes(239 - 128)
    td_info = body[120:520] + bytes(512 - 400)
    mac = struct.pack("<BBBB12x16s", 0x81, 0, 0, 0, bytes(16)) + hashlib.sha384(tee_tcb_info).digest()
    mac += hashlib.sha384(td_info).digest() + body[520:584] + bytes(64)
    return mac + tee_tcb_info + bytes(17) + td_info


_require = devices.require


class PlainMachine(Machine):
    """A machine without confidential hardware, to which somebody copied a kit."""

    def confidential(self, device: str, root: Path = Path("/")) -> None:
        _require(device, Path("/no-such-devices"))

    def tsm_report(self, report_data: bytes, provider: str | None = None) -> TsmReport:
        return devices.tsm_report(report_data, provider=provider, files=FakeTsm(self._make, mounted=False))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# -- what a verifier holds -------------------------------------------------------------------------------------------


def amd_crl(product: str = "Genoa", *revoked: int, **changes: Any) -> bytes:
    """AMD's list, issued three days ago. 0x10001 is the ASK."""
    return amd_pki.crl(product, revoked, **{"since": NOW - 3 * DAY, "until": NOW + 360 * DAY, **changes})


def intel_collateral(status: str = "UpToDate", **changes: Any) -> bytes:
    """Intel's word on the platform; ``changes`` as ``IntelPki.collateral``."""
    return INTEL.collateral(tcb_info=changed(INTEL.tcb_info(status=status)), **changes)


def write_collateral(folder: Path) -> None:
    """All that the shipped production policies ask of a verifier."""
    folder.mkdir(exist_ok=True)
    for product in ("Milan", "Genoa"):
        (folder / f"amd-{product.lower()}.crl").write_bytes(amd_crl(product))
    (folder / f"intel-{intel_pki.FMSPC}.json").write_bytes(intel_collateral())
    for kind in ("driver", "vbios"):
        (folder / f"{kind}.xml").write_bytes(nvidia().rim(kind))


def shipped(name: str, section: str) -> dict[str, Any]:
    """A section of ``cc_config/policy/<name>.yml``, the measurements of the released image filled in."""
    made: dict[str, Any] = yaml.safe_load((ROOT / "cc_config" / "policy" / f"{name}.yml").read_text())[section]
    if section == "snp":
        made["measurement"] = [MEASUREMENT]
    if section == "tdx":
        made["mr_td"] = [hashlib.sha384(b"td").hexdigest()]
        made["mr_service_td"] = [bytes(48).hex()]  # of quotes that name one: version 5, as here
        made |= {f"rtmr{n}": [hashlib.sha384(bytes([n])).hexdigest()] for n in (1, 2)}
    return made


def of_hospitals(**changes: Any) -> AttestationPolicy:
    """What the coordinator wants of hospitals: SEV-SNP or TDX."""
    sections = {"snp": shipped("snp", "snp"), "tdx": shipped("tdx", "tdx")}
    base = policy("snp", name="hospitals", evidence=["snp", "tdx"], **sections)
    return _changed(base, changes)


def of_azure() -> AttestationPolicy:
    """What the coordinator wants where some hospitals are on Azure; PCR 4, 9 and 11 are the released image's."""
    azure = shipped("azure-snp", "azure")
    azure["pcrs"] = {index: [azure_pki.PCRS[int(index)].hex()] for index in azure["pcrs"]}
    sections = {"snp": shipped("azure-snp", "snp"), "tdx": {**shipped("azure-tdx", "tdx"), **_ANY_KERNEL}}
    kinds = ["snp", "az-snp", "az-tdx"]
    return policy("azure-snp", name="hospitals", evidence=kinds, azure=azure, **sections)


_ANY_KERNEL = {"rtmr1": "any", "rtmr2": "any", "mr_service_td": "any"}  # on Azure: measured by the TPM; version 4


def of_coordinator(**changes: Any) -> AttestationPolicy:
    """What hospitals want of the coordinator: SEV-SNP and a GPU."""
    return _changed(policy("snp-h100", name="coordinator", snp=shipped("snp-h100", "snp")), changes)


def _changed(base: AttestationPolicy, changes: Mapping[str, Any]) -> AttestationPolicy:
    tree = msgspec.to_builtins(base)
    for name, value in changes.items():
        inner = tree[name]
        tree[name] = {**inner, **value} if isinstance(value, Mapping) and isinstance(inner, dict) else value
    return msgspec.convert(tree, AttestationPolicy, strict=True)


# -- kits ------------------------------------------------------------------------------------------------------------

PROFILES = {name: f"hospital-{name.replace('az-', 'azure-')}" for name in ("snp", "tdx", "az-snp", "az-tdx")}


def make_kits(
    folder: Path, machines: Mapping[str, Machine], *, hospitals: AttestationPolicy, coordinator: AttestationPolicy
) -> Path:
    """Production kits for ``machines`` below ``folder``, and each hospital's pin beside them (``pins/<name>.yml``).

    Args:
        hospitals: the coordinator's policy.
        coordinator: the hospitals' policy.
    """
    state, templates, policies = folder / "state", folder / "templates", folder / "policies"
    allow = {"studies": ["trial"], "privacy_modes": ["sealed"]}
    names = [name for name in machines if name != SERVER]
    federation_kits._templates(
        templates,
        names,
        {"profile": "production", "study": "trial", "evaluation": {"kind": "none", "name": ""}},
        {"evaluation": {"source": None}},
        {name: {"allow": allow} for name in names},
    )
    policies.mkdir(parents=True)
    for each in (hospitals, coordinator):
        (policies / f"{each.name}.yml").write_text(yaml.safe_dump(msgspec.to_builtins(each)))
    for name in machines:
        federation_kits._startup(folder / name / "startup", "server" if name == SERVER else "client", name, NOW)
        (folder / name / "local").mkdir()
    keys = {name: signing.encode_spki(mtls_key(name).public_key()) for name in machines}
    by = {name: policies / f"{(hospitals if name == SERVER else coordinator).name}.yml" for name in machines}
    made = poc_documents.make(
        templates=templates,
        contracts=[CONTRACT],
        policies=by,
        server=SERVER,
        certificates=keys,
        client_ca=federation_kits.client_ca(list(machines), NOW),
        broker=federation_kits.BROKER,
        state=state,
        now=NOW,
    )
    agreed = packaging.check_study(made.folder, "production", SERVER, keys, NOW)
    write_collateral(made.folder / COLLATERAL)
    for name, machine in machines.items():
        local = folder / name / "local"
        log_streaming: bool | None = None
        if name == SERVER:
            packaging.pack_coordinator(made.folder, made.policies[name], local, agreed, NOW)
        else:
            packed = packaging.pack_hospital(made.folder, made.policies[name], local, name, agreed, NOW)
            log_streaming = packed.egress.log_streaming
        packaging.pack_tee(made.folder, local, name, _profile(machine))
        packaging.pack_collateral(made.folder, local)
        federation_kits.write_flare_files(folder / name, name, log_streaming)
        if name != SERVER:
            _pin(folder, agreed, name)
    return folder


def _profile(machine: Machine) -> CCConfig:
    name = PROFILES[machine.evidence] + ("-h100" if machine.gpus else "")
    return documents.load(ROOT / "cc_config" / f"{name}.yml", CCConfig)


def _pin(folder: Path, agreed: StudyContract, name: str) -> None:
    key = signing.load_private_key((folder / "state" / poc_documents.KEYS / f"{name}.policy.key").read_bytes())
    made = pin.make(agreed, name, key.public_key(), read_kit(folder / name, NOW).policy_digests)
    (folder / "pins").mkdir(exist_ok=True)
    (folder / "pins" / f"{name}.yml").write_text(yaml.safe_dump(msgspec.to_builtins(made)))


# -- the federation --------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """The time of all parents and job processes."""

    now: datetime = NOW

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class HardwareFederation(CordonFederation):
    """Parents on ``machines``. ``wire.tampered[name]`` changes what ``name`` answers, ``machines[name]`` what it is."""

    def __init__(self, kits: Path, machines: Mapping[str, Machine], clock: Clock) -> None:
        self.machines, self.clock = dict(machines), clock
        super().__init__(kits, tuple(machines))

    def boot(self, names: Sequence[str]) -> None:
        for name in names:
            with self.inside(name):
                super().boot([name])

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """On the machine of ``name``: its devices, its pin."""
        machine = self.machines[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(pin.VARIABLE, str(self.kits / "pins" / f"{name}.yml"))
            patch.setattr(authorizers.devices, "require", machine.confidential)
            patch.setattr(nvml, "require_cc_mode", lambda: len(machine.gpus))
            patch.setattr(nvml, "require_no_gpu", lambda: None)
            for attester in (authorizers.SnpAttester, authorizers.TdxAttester):
                patch.setattr(authorizers, attester.__name__, functools.partial(attester, tsm=machine.tsm_report))
            if isinstance(machine, AzureMachine):
                azure = functools.partial(authorizers.AzureAttester, run=machine.run_tool, fetch=machine.fetch)
                patch.setattr(authorizers, "AzureAttester", azure)
            patch.setattr(authorizers, "with_gpus", functools.partial(authorizers.with_gpus, gpus=machine.gpu_reports))
            yield

    def kit(self, name: str) -> Kit:
        """The kit of ``name`` as a job process on its machine loads it."""
        with self.inside(name):
            return load_kit(self.kits / name, self.clock.now)

    def again(self, *names: str) -> list[str]:
        """Who is admitted in a later round, when those who failed are asked again."""
        self.clock.sleep(31.0)
        return self.admitted(*names)

    def lines(self, peer: str, verifier: str = SERVER) -> list[dict[str, Any]]:
        """The verifier's audit lines about ``peer``."""
        path = self.kits / verifier / AUDIT_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["peer"] == peer]

    def codes(self, peer: str, verifier: str = SERVER, result: str = "fail") -> set[str]:
        """Codes with this result on the last audit line about ``peer``."""
        return {code for code, said, _ in self.lines(peer, verifier)[-1]["codes"] if said == result}

    def faults(self, peer: str, verifier: str = SERVER) -> set[str]:
        """Codes of the verifier's newest fault record against ``peer``, as a third party finds them again.

        The third party knows study and policy, has vendors' statements of its own, and looks a day later.
        """
        records = sorted((self.kits / verifier / cc_manager.FAULT_FOLDER).glob(f"{peer}-????????T*Z.json"))
        if not records:
            return set()
        kit = self.parents[verifier].manager._ready()[0]
        own = collateral.read(self.kits / "state" / poc_documents.DOCUMENTS / COLLATERAL)
        found = fault.verify(
            json.loads(records[-1].read_text()),
            verifier_key=mtls_key(verifier).public_key(),
            peer=peer,
            peer_key=mtls_key(peer).public_key(),
            study=kit.study.digest,
            trust=Trust(kit.attest_policy, own),
            now=self.clock.now + DAY,
        )
        return {code for code, _ in found}


def shut_out(federation: HardwareFederation, peer: str, failed: set[str], proven: set[str] | None = None) -> None:
    """Assert that of all hospitals ``peer`` alone gets no lease, for just the reasons ``failed``.

    Args:
        proven: what a third party finds again in the fault record; None: all of ``failed``.
    """
    proven = failed if proven is None else proven
    federation.clock.sleep(31.0)  # after a failure it is asked again no sooner
    assert federation.admitted() == [name for name in federation.names if name not in (SERVER, peer)]
    assert federation.codes(peer) == failed
    line = federation.lines(peer)[-1]
    assert (line["verdict"], line["lease_until"]) == ("fail", None)
    assert line["state"] == ("quarantined" if proven else "unattested")
    assert federation.faults(peer) == proven
    assert not federation.server.down


# -- what attackers do -----------------------------------------------------------------------------------------------


def resigned(envelope: Any, name: str, **changes: Any) -> dict[str, Any]:
    """A statement changed and signed again by ``name``: what a host can do that holds the mTLS key but not the TEE."""
    return signing.sign(mtls_key(name), EVIDENCE_TYPE, {**signing.unverified_body(envelope), **changes})


def answer(envelope: Any) -> Any:
    """A reply to a challenge."""
    return make_reply(ReturnCode.OK, body={"evidence": envelope})


def forging(name: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Callable[[Any, Any], Any]:
    """For ``wire.tampered``: ``name`` changes its honest statement by what ``change`` makes of it, and signs it."""

    def forge(_request: Any, honest: Any) -> Any:
        envelope = honest.payload["evidence"]
        return answer(resigned(envelope, name, **change(signing.unverified_body(envelope))))

    return forge


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The made-up vendors are those whose roots are pinned."""
    monkeypatch.setattr(roots, "load", vendor_root)
    certificates.pinned.cache_clear()
    yield
    certificates.pinned.cache_clear()


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock on the wall stands at ``NOW`` unless somebody sleeps."""
    clock = Clock()

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            assert tz is UTC
            return clock.now

    for module in (cc_manager, session, admission):
        monkeypatch.setattr(module, "datetime", Frozen)
    return clock


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Many parents in one process: each has FLARE's own list of commands, and ends itself into this list."""
    made = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", made)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    return ended


def cpu_machines() -> dict[str, Machine]:
    """Coordinator on Genoa with a GPU; hospitals: two of Genoa, the last of them of a TDX host."""
    return {
        SERVER: Machine(chip="of the coordinator", gpus=[gpu(1)]),
        HONEST: Machine(chip="of hospital-a"),
        ROGUE: Machine(chip="of hospital-b"),
        THIRD: Machine("tdx"),
    }


def gpu_machines() -> dict[str, Machine]:
    """The same, each hospital with two GPUs."""
    made = cpu_machines()
    for number, name in enumerate(HOSPITALS):
        made[name].gpus = [gpu(10 * number + 10), gpu(10 * number + 11)]
    return made


def azure_machines() -> dict[str, Machine]:
    """The second and the third hospital on Azure."""
    azure = {ROGUE: AzureMachine("az-snp", chip="of hospital-b"), THIRD: AzureMachine("az-tdx")}
    return {**cpu_machines(), **azure}


FLEETS = {"cpu": cpu_machines, "gpu": gpu_machines, "azure": azure_machines}


@functools.cache
def gpu(number: int) -> Device:
    """The Hopper chip with this serial number."""
    return nvidia().device(number=number)


Make = Callable[..., HardwareFederation]


@pytest.fixture(scope="session")
def _hardware_kits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[AttestationPolicy, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def kits(hospitals: AttestationPolicy, fleet: str) -> Path:
        key = (hospitals.digest, fleet)
        if key not in made:
            folder = tmp_path_factory.mktemp("hardware")
            made[key] = make_kits(folder, FLEETS[fleet](), hospitals=hospitals, coordinator=of_coordinator())
        return made[key]

    return kits


@pytest.fixture
def hardware(
    _hardware_kits: Callable[[AttestationPolicy, str], Path],
    tmp_path: Path,
    vendors: None,
    wall: Clock,
    parents: list[int],
    remembered: None,
) -> Make:
    """Makes a federation of the coordinator and three hospitals, all up, nobody admitted yet.

    ``fleet``: what machines there are; with "gpu" the coordinator wants to see two of each hospital. The rest: changes
    of the coordinator's policy.
    """

    def make(fleet: str = "cpu", **changes: Any) -> HardwareFederation:
        if fleet == "gpu":
            changes["gpu"] = {**shipped("snp-h100", "gpu"), "count": 2}
        wanted = of_azure() if fleet == "azure" else of_hospitals(**changes)
        kits = Path(shutil.copytree(_hardware_kits(wanted, fleet), tmp_path / "kits"))
        return HardwareFederation(kits, FLEETS[fleet](), wall)

    return make
