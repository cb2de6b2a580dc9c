"""The group map: drawn once per job by commit and reveal, so that nobody chooses who is in a group with whom.

Each site commits to 32 random bytes; when it saw everybody's commitments it reveals, for that one set and once; when it
saw everybody's reveals it computes the map itself. One honest contribution makes the map uniform: all others were fixed
before anybody saw it. A coordinator that leaves out a revealer, or that shows two sets of commitments, gives a set that
does not fit, and no honest site goes on. What stays possible: README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cordon import signing
from cordon.errors import ConfigError, ProtocolAbort
from cordon.secagg import certificates, wire
from cordon.secagg.wire import KEY_BYTES, Commit, Commits, Reveal, Reveals
from cordon.signing import PrivateKey, PublicKey

GroupMap = tuple[tuple[str, ...], ...]


def commitment(contribution: bytes, site: str, job: str) -> str:
    """What ``site`` commits to; ``contribution`` is 32 random bytes, so it hides, and is bound to one site and job."""
    return signing.digest("cordon/secagg/contribution/v1", job.encode(), site.encode(), contribution)


def commits_digest(commits: Mapping[str, str], job: str) -> str:
    """Digest of a set of commitments (site -> commitment): what a reveal is for."""
    parts = [part.encode() for site in sorted(commits) for part in (site, commits[site])]
    return signing.digest("cordon/secagg/commits/v1", job.encode(), *parts)


def draw(reveals: Mapping[str, bytes], size: int) -> GroupMap:
    """The map: floor(N / size) groups of ``size`` or more (who is left over is spread), sites sorted inside each.

    Sites are shuffled by SHA-256 over all contributions. Groups are in the order of their first sites.

    Args:
        reveals: site -> contribution.

    Raises:
        ConfigError: fewer sites than one group wants.

    >>> draw({site: site.encode() * 32 for site in "abcdefg"}, 3)
    (('a', 'b', 'g'), ('c', 'd', 'e', 'f'))
    """
    if size < 1 or len(reveals) < size:
        raise ConfigError(f"{len(reveals)} sites do not make one group of {size}")
    parts = [part for site in sorted(reveals) for part in (site.encode(), reveals[site])]
    seed = signing.digest("cordon/secagg/seed/v1", *parts).encode()
    shuffled = sorted(reveals, key=lambda site: signing.digest("cordon/secagg/place/v1", seed, site.encode()))
    count = len(shuffled) // size
    return tuple(sorted(tuple(sorted(shuffled[number::count])) for number in range(count)))


def digest(groups: GroupMap) -> str:
    """Hex digest of a map, for ``Terms.group_map_digest``."""
    return signing.digest("cordon/secagg/groups/v1", signing.canonical([list(group) for group in groups]))


@dataclass(frozen=True)
class Signed:
    """A set of commitments whose signatures are verified: site -> commitment, and the key of each site."""

    commits: Mapping[str, str]
    keys: Mapping[str, PublicKey]
    digest: str


def read_commits(
    envelopes: tuple[dict[str, Any], ...],
    *,
    study: str,
    job: str,
    mtls_keys: Mapping[str, PublicKey],
    now: datetime,
) -> Signed:
    """The commitments in ``envelopes``; ProtocolAbort ``bad_group_map`` unless each is of another site of the study."""
    commits: dict[str, str] = {}
    keys: dict[str, PublicKey] = {}
    for envelope in envelopes:
        site, key = certificates.signer(envelope, study, job, mtls_keys, now, "bad_group_map")
        message = wire.verify(envelope, Commit, key, now, site)
        if message.job != job or message.site != site or site in commits:
            raise ProtocolAbort("bad_group_map", f"the commitment of {site} is there twice, or of another job or site")
        commits[site], keys[site] = message.commitment, key
    return Signed(commits, keys, commits_digest(commits, job))


def read_reveal(envelope: dict[str, Any], signed: Signed, *, job: str, now: datetime) -> Reveal:
    """One reveal, held against its site's commitment; ProtocolAbort ``bad_group_map``, blaming a site that lies."""
    site = wire.named_site(envelope)
    if site not in signed.keys:
        raise ProtocolAbort("bad_group_map", f"a reveal of {site}, which did not commit")
    message = wire.verify(envelope, Reveal, signed.keys[site], now, site)
    if message.job != job or message.site != site:
        raise ProtocolAbort("bad_group_map", f"the reveal of {site} is of another job or site")
    if message.commits != signed.digest:
        raise ProtocolAbort("bad_group_map", f"{site} revealed for another set of commitments: somebody saw two")
    if commitment(message.contribution, site, job) != signed.commits[site]:
        raise ProtocolAbort("bad_group_map", f"{site} reveals what it did not commit to", site)
    return message


class SiteDraw:
    """One site's part in drawing the map. ``commit``, ``reveal``, ``groups``, each once, in this order.

    ``state`` is "new", "committed", "revealed", "drawn" or, after any error, "aborted": then it says nothing more.

    Args:
        study: digest of the study contract.
        certificate: ``wire.Certificate`` of ``signing_key``, signed with the site's mTLS key.
        size: least sites in a group, from the job.
    """

    def __init__(
        self,
        *,
        study: str,
        job: str,
        site: str,
        size: int,
        signing_key: PrivateKey,
        certificate: dict[str, Any],
        coordinator_key: PublicKey,
        mtls_keys: Mapping[str, PublicKey],
        random: Callable[[int], bytes],
    ) -> None:
        self.state = "new"
        self._study, self._job, self._site, self._size = study, job, site, size
        self._key, self._certificate = signing_key, certificate
        self._coordinator_key, self._mtls_keys = coordinator_key, mtls_keys
        self._contribution = random(KEY_BYTES)
        self._own: dict[str, Any] = {}
        self._signed: Signed | None = None

    def commit(self) -> dict[str, Any]:
        """The ``Commit`` envelope."""
        self._begin("new")
        message = Commit(
            v=1,
            job=self._job,
            site=self._site,
            commitment=commitment(self._contribution, self._site, self._job),
            certificate=self._certificate,
        )
        self._own = wire.sign(self._key, message)
        self.state = "committed"
        return self._own

    def reveal(self, commits: Any, now: datetime) -> dict[str, Any]:
        """The ``Reveal`` envelope for the set in ``commits`` (a ``Commits`` envelope of the coordinator).

        Raises:
            ProtocolAbort: ``bad_message``, or ``bad_group_map`` if a commitment is not of a site of the study or the
                site's own is not among them.
        """
        self._begin("committed")
        message = wire.verify(commits, Commits, self._coordinator_key, now)
        if message.job != self._job or self._own not in message.commits:
            raise ProtocolAbort("bad_group_map", "the commitments are of another job, or this site's is not among them")
        self._signed = read_commits(
            message.commits, study=self._study, job=self._job, mtls_keys=self._mtls_keys, now=now
        )
        own = Reveal(v=1, job=self._job, site=self._site, commits=self._signed.digest, contribution=self._contribution)
        self.state = "revealed"
        return wire.sign(self._key, own)

    def groups(self, reveals: Any, now: datetime) -> GroupMap:
        """The map that ``reveals`` (a ``Reveals`` envelope of the coordinator) give: of *all* who committed."""
        self._begin("revealed")
        message = wire.verify(reveals, Reveals, self._coordinator_key, now)
        if self._signed is None or message.job != self._job:
            raise ProtocolAbort("bad_group_map", "the reveals are of another job")
        found = everybody(
            [read_reveal(each, self._signed, job=self._job, now=now) for each in message.reveals], self._signed
        )
        drawn = draw(found, self._size)
        self.state = "drawn"
        return drawn

    def _begin(self, wanted: str) -> None:
        state, self.state = self.state, "aborted"
        if state != wanted:
            raise ProtocolAbort("out_of_order", f"the group map is {state} at this site, want {wanted}")


def everybody(reveals: list[Reveal], signed: Signed) -> dict[str, bytes]:
    """site -> contribution; ProtocolAbort ``bad_group_map`` unless each who committed revealed."""
    found = {reveal.site: reveal.contribution for reveal in reveals}
    missing = sorted(set(signed.commits) - set(found))
    if missing:  # whoever leaves one out after it saw the others chooses between two maps
        raise ProtocolAbort("bad_group_map", f"no reveal of {', '.join(missing)}, who committed")
    return found


class CoordinatorDraw:
    """The coordinator's part: collects, checks so that it can blame, and hands round. ``stage`` is "commit", "reveal",
    "drawn" or "aborted". Who does not commit in time takes no part in the job; who commits must reveal."""

    def __init__(
        self,
        *,
        study: str,
        job: str,
        sites: tuple[str, ...],
        size: int,
        signing_key: PrivateKey,
        mtls_keys: Mapping[str, PublicKey],
    ) -> None:
        self.stage = "commit"
        self._study, self._job, self._size = study, job, size
        self._key, self._mtls_keys = signing_key, mtls_keys
        self._waiting = set(sites)
        self._taken: dict[str, dict[str, Any]] = {}
        self._signed: Signed | None = None
        self._reveals: list[Reveal] = []
        self.groups: GroupMap | None = None

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites not heard yet in this stage."""
        return tuple(sorted(self._waiting))

    def take(self, site: str, envelope: dict[str, Any], now: datetime) -> None:
        """A site's answer; ProtocolAbort if it is not what it should be (the site is then still waited for)."""
        if site not in self._waiting:
            raise ProtocolAbort("out_of_order", f"nothing is wanted of {site} now")
        if self.stage == "commit":
            found = read_commits((envelope,), study=self._study, job=self._job, mtls_keys=self._mtls_keys, now=now)
            if set(found.commits) != {site}:
                raise ProtocolAbort("bad_group_map", f"{site} sent a commitment of another site")
        else:
            reveal = read_reveal(envelope, self._known(), job=self._job, now=now)
            if reveal.site != site:
                raise ProtocolAbort("bad_group_map", f"{site} sent the reveal of another site")
            self._reveals.append(reveal)
        self._taken[site] = envelope
        self._waiting.discard(site)

    def commits(self, now: datetime) -> dict[str, Any]:
        """Ends the stage "commit" with who answered; the ``Commits`` envelope, the same for all."""
        if self.stage != "commit":
            raise ProtocolAbort("out_of_order", f"commitments are handed round once; stage is {self.stage}")
        envelopes = tuple(self._taken[site] for site in sorted(self._taken))
        self._signed = read_commits(envelopes, study=self._study, job=self._job, mtls_keys=self._mtls_keys, now=now)
        self.stage, self._waiting, self._taken = "reveal", set(self._signed.commits), {}
        return wire.sign(self._key, Commits(v=1, job=self._job, commits=envelopes))

    def reveals(self) -> dict[str, Any]:
        """Ends the stage "reveal" and draws; the ``Reveals`` envelope. ``bad_group_map`` if anybody did not reveal."""
        if self.stage != "reveal":
            raise ProtocolAbort("out_of_order", f"reveals are handed round once, after all came; stage is {self.stage}")
        self.stage = "aborted"
        self.groups = draw(everybody(self._reveals, self._known()), self._size)
        self.stage = "drawn"
        return wire.sign(
            self._key, Reveals(v=1, job=self._job, reveals=tuple(self._taken[site] for site in sorted(self._taken)))
        )

    def _known(self) -> Signed:
        if self._signed is None:
            raise ProtocolAbort("out_of_order", "nobody has committed yet")
        return self._signed
