"""POC only: the one key broker of a workspace, with a tenant per hospital that keeps its data in a vault.

In production each hospital's security team runs its own, off the training host. Here all of it lies in one folder
beside the kits: configuration, TLS key, the key encryption key with its passphrase, and the broker's state.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from cordon import documents, signing
from cordon.broker import config, identity
from cordon.broker.keys import FileKeys, Secret, create_file_kek, open_backend
from cordon.broker.tenant import TenantBroker
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.flare.poc_keys import signing_key, tls_certificate, write_bytes, write_private
from cordon.study import StudyContract
from cordon.vault_stamp import Stamp

FOLDER = "cordon_broker"
CONFIG = "broker.yml"
STATE = "state"
KEK, PASSPHRASE = "kek", "passphrase"
KEYS = FileKeys(path=KEK, passphrase=Secret(file=PASSPHRASE))
_SCRYPT_LOG2_N = 14  # the least there is: the passphrase is 32 random bytes, which no stretching makes harder to guess
_HEADER = "# Made for this POC workspace: the broker of all its hospitals. Nothing in this folder is for a kit.\n"


class Place(Document, frozen=True, kw_only=True):
    """CordonBuilder's argument ``broker``: where sites reach it, and the budget of each tenant over all jobs.

    ``listen`` is the address it binds, where that is not ``host`` (containers).
    """

    host: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9.-]{1,253}\Z")]
    port: Annotated[int, Meta(ge=1, le=65535)]
    max_releases: Annotated[int, Meta(ge=0)]
    epsilon: Annotated[float, Meta(ge=0)]
    listen: str | None = None


def place(argument: Mapping[str, Any] | None) -> Place | None:
    """CordonBuilder's argument; ConfigError if it does not fit."""
    if argument is None:
        return None
    try:
        return msgspec.convert(argument, Place, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"CordonBuilder's argument broker: {error}") from error


@dataclass(frozen=True)
class Keeper:
    """A broker whose identities are made: ``spki`` hospital -> key that signs its leases (base64 DER)."""

    folder: Path
    place: Place
    tls_spki: str
    spki: dict[str, str]

    @property
    def url(self) -> str:
        return f"https://{self.place.host}:{self.place.port}"


def prepare(folder: Path, place: Place, hospitals: Sequence[str], now: datetime) -> Keeper:
    """Make what the study contract and the site policies name: the broker's signing key per hospital, its TLS key."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / PASSPHRASE).exists():
        secret = base64.b64encode(os.urandom(32))
        write_private(folder / PASSPHRASE, secret + b"\n")
        create_file_kek(folder / KEK, secret, log2_n=_SCRYPT_LOG2_N)
    tls = signing_key(folder / "tls.key")
    write_bytes(folder / "tls.pem", tls_certificate(tls, place.host, now))
    keys, spki = open_backend(KEYS, folder), {}
    try:
        for name in hospitals:
            made = folder / f"{name}.spki"
            if not made.exists():
                write_bytes(made, identity.create(name, folder / STATE, keys, now).encode() + b"\n")
            spki[name] = made.read_text().strip()
    finally:
        keys.close()
    return Keeper(folder, place, signing.encode_spki(tls.public_key()), spki)


def register(folder: Path, hospital: str, stamp: Stamp, key: bytes, now: datetime) -> None:
    """Hand the key of a hospital's vault to its tenant of the broker in ``folder``, which may be running."""
    with opened(folder, hospital, now) as broker:
        broker.register(stamp, key, now)


def hospitals(folder: Path) -> tuple[str, ...]:
    """Whose keys the broker in ``folder`` keeps."""
    return tuple(each.site for each in documents.load(folder / CONFIG, config.BrokerConfig).tenants)


@contextlib.contextmanager
def opened(folder: Path, hospital: str, now: datetime) -> Iterator[TenantBroker]:
    """The tenant of ``hospital``, beside the running broker or without it."""
    settings = documents.load(folder / CONFIG, config.BrokerConfig)
    found = [each for each in settings.tenants if each.site == hospital]
    if not found:
        raise ConfigError(f"{folder / CONFIG}: no tenant of {hospital}")
    keys = open_backend(settings.keys, folder)
    try:
        broker = TenantBroker.open(found[0], folder, folder / settings.state, keys, now)
        try:
            yield broker
        finally:
            broker.close()
    finally:
        keys.close()


def write(
    keeper: Keeper,
    agreed: Path,
    policy: Path,
    software_root: bytes,
    client_ca: bytes,
    deltas: Mapping[str, float],
) -> None:
    """The configuration and all that it names.

    Args:
        agreed: the signed study contract.
        policy: the attestation policy by which every tenant judges.
        software_root: PEM of what certifies the software TEEs.
        client_ca: PEM of the CA of the sites' mTLS certificates.
        deltas: hospital -> the delta of its site policy.
    """
    folder, place = keeper.folder, keeper.place
    for source, name in ((agreed, "study.yml"), (policy, "attestation.yml")):
        for path, copy in ((source, name), (documents.signature_path(source), f"{name}.sig")):
            write_bytes(folder / copy, documents.read_bytes(path))
    write_bytes(folder / "software_tee" / "root.pem", software_root)
    write_bytes(folder / "client_ca.pem", client_ca)
    study = documents.load(folder / "study.yml", StudyContract)
    tenants = [
        {
            "name": name,
            "site": name,
            "study": "study.yml",
            "study_digest": study.digest,
            "attestation": "attestation.yml",
            "gate": {"max_releases": place.max_releases, "epsilon": place.epsilon, "delta": delta},
        }
        for name, delta in deltas.items()
    ]
    tree: dict[str, Any] = {
        "version": config.SCHEMA,
        "listen": {"host": place.listen or place.host, "port": place.port},
        "tls": {"certificate": "tls.pem", "key": "tls.key", "client_ca": "client_ca.pem"},
        "state": STATE,
        "keys": documents.body_of(KEYS),
        "tenants": tenants,
    }
    path = write_bytes(folder / CONFIG, (_HEADER + yaml.safe_dump(tree, sort_keys=False)).encode())
    documents.load(path, config.BrokerConfig)
