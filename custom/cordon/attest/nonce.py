"""A verifier's challenges: 32 random bytes, single use, with a deadline, for one site, purpose and job.

The file makes single use hold across restarts: a challenge is removed, on disk, before the answer is looked at.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from cordon import documents
from cordon.attest.binding import NONCE_BYTES
from cordon.documents import Document
from cordon.errors import AttestError, ConfigError

MAX_OUTSTANDING = 10_000


class _Challenge(Document, frozen=True, kw_only=True):
    site: str
    purpose: str
    job: str
    deadline: datetime


class Nonces:
    """Challenges of one verifier. Not thread-safe: the caller holds a lock.

    Args:
        path: where outstanding challenges are kept; made if absent. The file holds digests, not nonces.
        random: source of ``n`` random bytes.

    Raises:
        ConfigError: the file is there but is not ours.
    """

    def __init__(self, path: Path, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._path = path
        self._random = random
        self._open: dict[str, _Challenge] = {}
        if path.exists():
            try:
                self._open = msgspec.json.decode(
                    documents.read_bytes(path, 8 * documents.MAX_DOCUMENT), type=dict[str, _Challenge]
                )
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise ConfigError(f"{path}: not a list of open challenges: {error}") from error

    def issue(self, site: str, purpose: str, job: str, now: datetime, ttl_s: float) -> bytes:
        """A fresh challenge to ``site``; its answer counts once, until ``ttl_s`` seconds from ``now``.

        An earlier one to the same site for the same thing is void.
        """
        asked = (site, purpose, job)
        self._open = {
            key: each
            for key, each in self._open.items()
            if each.deadline >= now and (each.site, each.purpose, each.job) != asked
        }
        if len(self._open) >= MAX_OUTSTANDING:
            raise AttestError([("challenge_limit", f"{MAX_OUTSTANDING} challenges are open already")])
        nonce = self._random(NONCE_BYTES)
        deadline = now + timedelta(seconds=ttl_s)
        self._open[_key(nonce)] = _Challenge(site=site, purpose=purpose, job=job, deadline=deadline)
        self._save()
        return nonce

    def take(self, nonce: bytes, site: str, purpose: str, job: str, now: datetime) -> None:
        """Use up ``nonce``; AttestError unless it is open, in time, and was made for just this.

        The challenge is gone whatever the outcome: a wrong first answer spoils it.
        """
        challenge = self._open.pop(_key(nonce), None)
        if challenge is None:
            raise AttestError([("nonce_unknown", "no open challenge with this nonce: never issued, used, or expired")])
        self._save()
        if now > challenge.deadline:
            raise AttestError([("nonce_expired", f"the challenge ended at {challenge.deadline.isoformat()}")])
        if (challenge.site, challenge.purpose, challenge.job) != (site, purpose, job):
            raise AttestError([("nonce_misused", f"the challenge was for {challenge.purpose} of {challenge.site}")])

    def _save(self) -> None:
        part = self._path.with_name(self._path.name + ".part")
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(self._open))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)


def _key(nonce: bytes) -> str:
    return hashlib.sha256(nonce).hexdigest()
