"""What one piece of evidence says, as the 64 bytes that a TEE signs, and the bundle digest.

``report_data = SHA-512( lp("cordon/evidence/v1") || lp(ctx) || lp(nonce) || lp(SHA-256(SPKI of the mTLS certificate))
|| lp(kem_public_key) || lp(signing_public_key) || lp(SHA-256(gpu_evidence) or "none") )``

with ctx the canonical JSON of ``Context``. Length prefixes keep two different statements from sharing one encoding.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

import cordon
from cordon.documents import Document
from cordon.signing import canonical, digest, lp

NONCE_BYTES = 32
MAX_GPUS = 64

Label = Annotated[str, Meta(max_length=128)]


class Context(Document, frozen=True, kw_only=True):
    """What evidence is for. A verifier compares every field with what it expects.

    ``purpose`` parent = admission of a site or coordinator to the federation, job = one job process and its keys,
    release = the same process asks its hospital's key broker for the data key; ``site`` FLARE name of the prover;
    ``study`` digest of the study contract; ``job`` FLARE's job id ('' for parent); ``job_digest`` digest of the job
    folder ('' for parent); ``bundle_digest`` of the prover's installed package; ``policy_digest`` of the attestation
    policy by which the *verifier* judges.
    """

    purpose: Literal["parent", "job", "release"]
    site: Label
    study: Label
    job: Label
    job_digest: Label
    bundle_digest: Label
    policy_digest: Label

    def canonical(self) -> bytes:
        """The bytes that are bound: RFC 8785 JSON of all fields."""
        return canonical(msgspec.to_builtins(self))


def report_data(
    ctx: Context,
    nonce: bytes,
    mtls_spki_sha256: str,
    kem_public_key: bytes,
    signing_public_key: bytes,
    gpu_evidence: list[dict[str, Any]] | None,
) -> bytes:
    """The 64 bytes that the CPU's TEE signs.

    Args:
        nonce: the verifier's 32 bytes.
        mtls_spki_sha256: ``signing.spki_digest`` of the prover's mTLS key (hex).
        kem_public_key: ``keys.ProcessKeys.kem_public_bytes``.
        signing_public_key: DER SubjectPublicKeyInfo.
        gpu_evidence: one object per GPU with key ``uuid``, taken with ``gpu_nonce``; None without GPUs.
    """
    return hashlib.sha512(
        lp(b"cordon/evidence/v1")
        + lp(ctx.canonical())
        + lp(nonce)
        + lp(bytes.fromhex(mtls_spki_sha256))
        + lp(kem_public_key)
        + lp(signing_public_key)
        + lp(b"none" if gpu_evidence is None else hashlib.sha256(_gpu_bytes(gpu_evidence)).digest())
    ).digest()


def gpu_nonce(nonce: bytes, kem_public_key: bytes) -> bytes:
    """Nonce for GPU evidence, which is taken first: the CPU's report then covers it and both name one KEM key."""
    return bytes.fromhex(digest("cordon/gpu/v1", nonce, kem_public_key))


def bundle_digest(package: Path | None = None) -> str:
    """Hex digest of an installed package: relative path and content of each file, sorted; compiled caches left out.

    The files are those that the wheel installs, so in an image this equals the digest of the wheel's own content.

    Args:
        package: the package's folder; default is the running ``cordon``.
    """
    return _digest_of(package) if package is not None else _own_digest()


@functools.cache
def _own_digest() -> str:
    # Once per process: what was loaded at start is what runs, whatever the disk says later.
    return _digest_of(Path(cordon.__file__).parent)


def _digest_of(root: Path) -> str:
    files = sorted(
        (path.relative_to(root).as_posix(), path)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )
    parts = [part for name, path in files for part in (name.encode(), hashlib.sha256(path.read_bytes()).digest())]
    return digest("cordon/bundle/v1", *parts)


def _gpu_bytes(gpu_evidence: list[dict[str, Any]]) -> bytes:
    return canonical(sorted(gpu_evidence, key=lambda gpu: str(gpu.get("uuid", ""))))
