"""Kits of a coordinator and some hospitals, made in a second without nvflare's provisioning.

The documents are made, signed, checked and copied by the product's own code (``poc_documents``, ``packaging``); made up
here are only the certificates, which FLARE's CertBuilder would issue, and that every hospital keeps its data as CSV:
plain and without a key broker (POC only), unless ``vaults`` says otherwise.
FLARE's own files come from its templates, as its StaticFileBuilder fills them.
"""

import functools
import importlib.resources
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from cordon import signing
from cordon.attest import standing
from cordon.demo import wdbc
from cordon.demo.kits import fill_kit
from cordon.flare import kit_files, packaging, poc_broker, poc_documents
from cordon.flare.kit import STANDING_FILE

ROOT = Path(__file__).resolve().parents[2]
SERVER = "server"
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
BROKER = poc_broker.Place(host="127.0.0.1", port=8004, max_releases=100, epsilon=40.0)
CONTRACT = ROOT / "jobs" / "oncology" / "app" / "config" / "contract.yml"


PLAIN = {"vault": None, "unsafe_source": "../data/patients.csv"}


@functools.cache
def mtls_key(name: str) -> RSAPrivateKey:
    """The mTLS key of ``name``: the same in all kits of one test run, for key generation is slow."""
    return generate_private_key(65537, 2048)


def make_kits(
    folder: Path,
    hospitals: Sequence[str] = HOSPITALS,
    *,
    study: Mapping[str, Any] | None = None,
    coordinator: Mapping[str, Any] | None = None,
    site: Mapping[str, Mapping[str, Any]] | None = None,
    vaults: Sequence[str] = (),
    broker: poc_broker.Place = BROKER,
) -> Path:
    """Make ``folder/<name>/{startup,local,data}`` for coordinator and hospitals; returns ``folder``.

    Args:
        vaults: hospitals whose data is sealed; their key broker's files are in ``folder/cordon_broker``.
        broker: where that would listen.
        study: keys of the study contract to change.
        coordinator: keys of the coordinator's settings to change.
        site: hospital -> keys of its policy to change (two levels are merged).
    """
    now = datetime.now(UTC)
    state, templates = folder / "state", folder / "templates"
    changes = {name: dict((site or {}).get(name, {})) for name in hospitals}
    for name in set(hospitals) - set(vaults):
        changes[name]["data"] = {**PLAIN, **changes[name].get("data", {})}
    _templates(templates, hospitals, study or {}, coordinator or {}, changes)
    names = (SERVER, *hospitals)
    for name in names:
        _startup(folder / name / "startup", "server" if name == SERVER else "client", name, now)
        (folder / name / "local").mkdir()
    certificates = {name: signing.encode_spki(mtls_key(name).public_key()) for name in names}
    made = poc_documents.make(
        templates=templates,
        contracts=[CONTRACT],
        policies=dict.fromkeys(names, ROOT / "cc_config" / "policy" / "software.yml"),
        server=SERVER,
        certificates=certificates,
        client_ca=client_ca(names),
        broker=broker,
        state=state,
        now=now,
    )
    agreed = packaging.check_study(made.folder, "poc", SERVER, certificates, now)
    split = wdbc.split(0)
    for name in names:
        local = folder / name / "local"
        log_streaming: bool | None = None
        if name == SERVER:
            packaging.pack_coordinator(made.folder, made.policies[name], local, agreed, now)
            fill_kit(folder / name, None, split, folder / poc_broker.FOLDER)
        else:
            packed = packaging.pack_hospital(made.folder, made.policies[name], local, name, agreed, now)
            log_streaming = packed.egress.log_streaming
            # More hospitals than the demo has data for: the others hold the last one's patients.
            patients = name if name in split.sites else list(split.sites)[-1]
            fill_kit(folder / name, patients, split, folder / poc_broker.FOLDER)
        poc_documents.write_tee(state, local, name, now)
        write_flare_files(folder / name, name, log_streaming)
        for peer in hospitals if name == SERVER else (SERVER,):
            stand(folder / name, peer)
    return folder


def write_flare_files(kit: Path, name: str, log_streaming: bool | None) -> None:
    """What FLARE starts from in the kit of ``name``, Cordon's part included. No ``log_streaming``: the coordinator."""
    hospital, local = log_streaming is not None, kit / "local"
    base = "client" if hospital else "server"
    text = importlib.resources.files("nvflare").joinpath("lighter", "templates", "master_template.yml").read_text()
    sections = yaml.safe_load(text)
    values = {
        **{"name": "federation", "target": f"{SERVER}:8002", "scheme": "grpc", "conn_sec": "mtls"},
        **{"admin_server": SERVER, "admin_port": "8002", "server_identity": SERVER, "fqsn": name, "is_leaf": "true"},
        **{"require_signed_jobs_config": "", "auth_identity_config": "", "class_allow_list": '["nvflare."]'},
        **{"allow_log_streaming": "true", "num_gpus": "0", "gpu_mem": "0"},
    }
    for path, section in (
        (kit / "startup" / f"fed_{base}.json", f"fed_{base}"),
        (local / "resources.json.default", f"local_{base}_resources"),
        (local / "log_config.json.default", "log_config"),
    ):
        filled = sections[section]
        for key, value in values.items():
            filled = filled.replace("{~~" + key + "~~}", value)
        path.write_text(json.dumps(json.loads(filled)))
    for file, tree in kit_files.components(hospital, 2).items():
        (local / file).write_text(json.dumps(tree))
    kit_files.restrict_resources(local, log_streaming)
    kit_files.write_authorization(local)


def stand(kit: Path, peer: str, state: str = "attested", lease_s: float = 3600.0, reasons: Sequence[str] = ()) -> None:
    """Let ``peer`` stand so with the kit's parent process, which no unit test runs."""
    path, now = kit / STANDING_FILE, datetime.now(UTC)
    there = standing.read(path) if path.exists() else {}
    until = now + timedelta(seconds=lease_s)
    there[peer] = standing.Standing(state=state, granted=now, expires=until, reasons=tuple(reasons))  # type: ignore[arg-type]
    standing.write(path, there)


def _templates(
    target: Path,
    hospitals: Sequence[str],
    study: Mapping[str, Any],
    coordinator: Mapping[str, Any],
    site: Mapping[str, Mapping[str, Any]],
) -> None:
    source = ROOT / "provisioning" / "poc"
    (target / "mappings").mkdir(parents=True)
    _edit(source / "study.yml", target / "study.yml", study)
    _edit(source / "coordinator.yml", target / "coordinator.yml", coordinator)
    for name in hospitals:
        changes = {"site": name, "unsafe_poc": None, **site.get(name, {})}
        _edit(source / "hospital-e.yml", target / f"{name}.yml", changes)
        shutil.copyfile(source / "mappings" / "hospital-e.yml", target / "mappings" / f"{name}.yml")


def _edit(source: Path, target: Path, changes: Mapping[str, Any]) -> None:
    tree = yaml.safe_load(source.read_text())
    for key, value in changes.items():
        old = tree.get(key)
        tree[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    target.write_text(yaml.safe_dump(tree))


def client_ca(names: Sequence[str], now: datetime | None = None) -> bytes:
    """PEM of what a broker would check the certificates of ``names`` against: themselves, for nobody issued them."""
    issued = (_certificate(name, now or datetime.now(UTC)) for name in names)
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in issued)


def _certificate(name: str, now: datetime) -> x509.Certificate:
    names = ((NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, name.replace("-", "_")))
    key, subject = mtls_key(name), x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def _startup(folder: Path, base: str, name: str, now: datetime) -> None:
    folder.mkdir(parents=True)
    key, certificate = mtls_key(name), _certificate(name, now)
    (folder / f"{base}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{base}.key").write_bytes(pem)
