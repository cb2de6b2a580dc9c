"""The pin (``/etc/cordon/pin.yml``, schema ``cordon/pin/v1``): what a hospital remembers of its study outside its kit.

A kit proves itself only to itself: the study contract in it names the keys that signed it. Whoever makes or carries
kits could write another contract, with keys of their own, and sign everything anew. The pin is a file that the
hospital's security officer makes from the contract that the hospital signed, and keeps where no kit reaches. It names
the contract's digest, and the officer's own policy key, so that none can be made from a contract that names another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from cordon import documents, signing
from cordon.documents import Document
from cordon.errors import ConfigError, SignatureError
from cordon.signing import PublicKey
from cordon.study import Name, Sha256, Spki, StudyContract

SCHEMA = "cordon/pin/v1"
PATH = Path("/etc/cordon/pin.yml")
VARIABLE = "CORDON_PIN"


PolicyKind = Literal["site", "attestation"]


class Pin(Document, frozen=True, kw_only=True):
    """``study_digest`` is ``StudyContract.digest``; ``policy_spki`` this hospital's own policy key, base64 DER.

    ``policies``: content digests of the site policy and the attestation policy that are in force. A signature has no
    date: without them, whoever packs or mounts the kit can put an older, weaker one back that was signed once.
    """

    version: Literal["cordon/pin/v1"]
    site: Name
    study_digest: Sha256
    policy_spki: Spki
    policies: dict[PolicyKind, Sha256] = msgspec.field(default_factory=dict)


def make(
    agreed: StudyContract, site: str, policy_key: PublicKey, policies: Mapping[PolicyKind, str] | None = None
) -> Pin:
    """The pin of hospital ``site`` for a contract that names ``policy_key`` as its policy key.

    Args:
        policy_key: from the hospital's own files, never from the contract.

    Raises:
        ConfigError: ``site`` is not in the roster.
        SignatureError: the roster names another policy key for it.
    """
    found = Pin(
        version="cordon/pin/v1",
        site=site,
        study_digest=agreed.digest,
        policy_spki=signing.encode_spki(policy_key),
        policies=dict(policies or {}),
    )
    check(found, agreed, site, f"study {agreed.study}", found.policies)
    return found


def check(
    pin: Pin, agreed: StudyContract, site: str, said_in: str, policies: Mapping[PolicyKind, str] | None = None
) -> None:
    """Raise unless ``agreed`` is the pinned contract and names the pinned policy key for ``site``; all misses together.

    Args:
        said_in: what messages call the place that wanted it.
        policies: content digests of the policies in the kit; those that the pin names must be these.
    """
    misses = []
    if pin.site != site:
        misses.append(f"is for {pin.site}, this kit is of {site}")
    if pin.study_digest != agreed.digest:
        misses.append(f"wants study contract {pin.study_digest[:16]}..., this one is {agreed.digest[:16]}...")
    wanted = signing.spki_digest(signing.decode_spki(pin.policy_spki))
    got = signing.spki_digest(agreed.hospital(site).policy_key)
    if wanted != got:
        misses.append(f"wants policy key {wanted[:16]}..., the contract names {got[:16]}... for {site}")
    for kind, digest in pin.policies.items():
        there = (policies or {}).get(kind, "none")
        if there != digest:
            misses.append(f"wants {kind} policy {digest[:16]}..., this kit's is {there[:16]}...")
    if misses:
        raise SignatureError(f"{said_in}: {'; '.join(misses)}")


def locate(kit: Path, environ: Mapping[str, str], default: Path = PATH) -> Path | None:
    """The pin that counts for the kit at ``kit``: ``default`` if it is there, else what CORDON_PIN names, else None.

    The variable cannot replace a pin at the fixed path: whoever starts the process sets variables, and that pin may be
    part of the measured image.

    Raises:
        ConfigError: CORDON_PIN names no file, or the pin lies in the kit (also by a link): its maker wrote it then.
    """
    path = default
    try:
        default.lstat()  # a link that leads nowhere is a pin that is broken, not one that is absent
    except (FileNotFoundError, NotADirectoryError):
        if (named := environ.get(VARIABLE)) is None:
            return None
        path = Path(named)
        if not path.is_absolute():
            raise ConfigError(f"{VARIABLE}={named}: want an absolute path") from None
        if not path.exists() and not path.is_symlink():
            raise ConfigError(f"{path}: no such file; {VARIABLE} names it as the pin") from None
    except OSError as error:
        raise ConfigError(f"{default}: cannot be looked at: {error.strerror}") from error
    if path.resolve().is_relative_to(kit.resolve()):
        raise ConfigError(f"{path}: a pin inside the kit pins nothing: whoever made the kit wrote it")
    return path


def check_start(
    kit: Path,
    agreed: StudyContract,
    site: str,
    environ: Mapping[str, str],
    default: Path = PATH,
    policies: Mapping[PolicyKind, str] | None = None,
) -> None:
    """Raise unless the hospital's kit at ``kit`` may start on this machine.

    A production study wants a pin. A pin that is there counts for every profile: else a kit signed anew as a POC study
    would walk around it.

    Raises:
        ConfigError: no pin, unreadable, or inside the kit.
        SignatureError: the kit is of another study contract, or names another policy key, than the pin.
    """
    path = locate(kit, environ, default)
    if path is not None:
        found = documents.load(path, Pin)
        check(found, agreed, site, str(path), policies)
        if agreed.profile != "poc" and set(found.policies) != {"site", "attestation"}:
            raise ConfigError(
                f"{path}: names {', '.join(found.policies) or 'no policy'}; a {agreed.profile} kit wants a pin that "
                "fixes site and attestation policy (signatures have no date): cordon pin --site-policy --attestation"
            )
    elif agreed.profile != "poc":
        raise ConfigError(
            f"{default}: missing; a {agreed.profile} kit starts only where the hospital pinned its study: "
            f"cordon pin --study study.yml --site {site} --policy-key policy.pub --site-policy {site}.yml "
            f"--attestation attestation.yml --out {default}"
        )
