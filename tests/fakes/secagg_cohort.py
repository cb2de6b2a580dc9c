"""One cohort of secure aggregation in memory: honest members, the real server, and a network that a test tampers with.

``Cohort(5).run()`` opens the mean of five sites. A test that attacks names ``hooks``: (stage, "down" or "up") -> a
function of (site, envelope) that gives what is delivered instead (upwards also (envelope, payload)), or None for a
message that never arrives. ``gone`` takes sites away: {"a": ("masked", "down")} loses the message to a in stage masked
and all that follows. ``Cohort.sign`` speaks as the coordinator, ``sign_as`` as a site that lies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cordon import signing
from cordon.job import Staleness
from cordon.messages import DPEvent
from cordon.secagg import certificates, groups, roster, wire
from cordon.secagg.client import Member
from cordon.secagg.server import Aggregation, Opened
from cordon.secagg.terms import Terms

NOW = datetime(2026, 11, 24, tzinfo=UTC)
STUDY, JOB, LAYOUT = "5" * 64, "job-1", "1" * 64
STAGES = ("shares", "masked", "confirm", "unmask")
EVENT = DPEvent(
    mechanism="poisson_subsampled_gaussian",
    noise_multiplier=1.0,
    sampling_rate=0.5,
    steps=5,
    clip_norm=1.0,
    unit="patient",
)
Hook = Callable[[str, Any], Any]


@functools.cache
def key_of(owner: str) -> Ed25519PrivateKey:
    """The private key of ``owner``: the same in a whole test run."""
    return Ed25519PrivateKey.generate()


@functools.cache
def certificate_of(site: str) -> dict[str, Any]:
    """The certificate of the site's signing key, by its mTLS key."""
    return certificates.certify(key_of(f"mtls {site}"), STUDY, JOB, site, key_of(site).public_key())


def names(count: int) -> tuple[str, ...]:
    """site-01, site-02, ..."""
    return tuple(f"site-{number:02}" for number in range(1, count + 1))


def mtls_keys(sites: Iterable[str]) -> dict[str, signing.PublicKey]:
    """site -> public mTLS key: the study's roster."""
    return {site: key_of(f"mtls {site}").public_key() for site in sites}


def head(version: int) -> str | None:
    """Head of the one chain at ``version``."""
    return f"{version:064x}"


def terms_for(sites: Sequence[str], size: int = 8, **changes: Any) -> Terms:
    """Terms of a masked sum over ``sites`` with uniform weights, some of them changed."""
    drawn = changes.get("groups")
    terms = Terms(
        study=STUDY,
        job=JOB,
        mode="sum" if drawn is None else "groups",
        u_min=3,
        c=0,
        ring_bits=32,
        clip=1.0,
        size=size,
        weights=dict.fromkeys(sites, 1 / len(sites)),
        staleness=Staleness(),
        layout_digest=LAYOUT,
        dp_event=EVENT,
        group_map_digest="" if drawn is None else groups.digest(drawn),
        groups=drawn,
    )
    return replace(terms, **{name: value for name, value in changes.items() if name != "groups"})


def exact_vector(number: int, size: int) -> NDArray[np.float32]:
    """A vector that fixed point holds exactly: eighths in -1..1, another for each ``number``."""
    drawn = np.random.default_rng(number).integers(-8, 9, size)
    return (drawn / 8).astype(np.float32)


@dataclass
class Sent:
    """One message as it went over the network."""

    stage: str
    direction: str
    site: str
    envelope: Any
    payload: bytes = b""


class Cohort:
    """Honest members and the real server.

    Args:
        sites: how many, or their names.
        size: d.
        version: of the model as the cohort forms; ``bases``: site -> base version, else ``version``.
        vectors: site -> update; else ``exact_vector``. noises: site -> share of noise in the ring.
        study: all sites of the study, else ``sites``.
        member: site -> class, for a site that is not the real ``Member``.
        changes: of the terms.
    """

    def __init__(
        self,
        sites: int | Sequence[str] = 5,
        *,
        size: int = 8,
        version: int = 0,
        bases: Mapping[str, int] | None = None,
        vectors: Mapping[str, NDArray[np.float32]] | None = None,
        noises: Mapping[str, NDArray[np.int64]] | None = None,
        study: Sequence[str] | None = None,
        member: Mapping[str, type[Member]] | None = None,
        cohort_id: str = "cohort-000000001",
        hooks: Mapping[tuple[str, str], Hook] | None = None,
        gone: Mapping[str, tuple[str, str]] | None = None,
        **changes: Any,
    ) -> None:
        self.sites = names(sites) if isinstance(sites, int) else tuple(sites)
        self.study = tuple(study or self.sites)
        self.terms = terms_for(self.study, size, **changes)
        self.vectors = dict(vectors or {site: exact_vector(n, size) for n, site in enumerate(self.sites)})
        self.noises = dict(noises or {})
        self.coordinator_key = key_of("coordinator")
        self.mtls = mtls_keys(self.study)
        self.hooks, self.gone = dict(hooks or {}), dict(gone or {})
        self.sent: list[Sent] = []
        self.errors: dict[str, Exception] = {}  # site -> what ended its member
        self.refused: list[tuple[str, Exception]] = []  # what the server did not take
        self.members: dict[str, Member] = {}
        self.tickets: dict[str, dict[str, Any]] = {}
        for site in self.sites:
            self.add(site, (bases or {}).get(site, version), (member or {}).get(site, Member))
        self.cohort_id, self.version = cohort_id, version
        self.server = self.aggregation()

    def add(self, site: str, base: int, kind: type[Member] = Member) -> None:
        """Make ``site`` ready with fresh keys."""
        self.members[site], self.tickets[site] = kind.ready(
            terms=self.terms,
            site=site,
            ticket=f"ticket-of-{site}-{base}",
            base_version=base,
            head=head(base) or "",
            ledger=None,
            signing_key=key_of(site),
            certificate=certificate_of(site),
            coordinator_key=self.coordinator_key.public_key(),
        )

    def aggregation(self, sites: Iterable[str] | None = None) -> Aggregation:
        """A server for the tickets of ``sites``."""
        read = {
            site: roster.read_ticket(self.tickets[site], self.terms, self.mtls, NOW) for site in sites or self.sites
        }
        tickets = {site: (ticket, self.tickets[site], key) for site, (ticket, key) in read.items()}
        return Aggregation(self.terms, self.cohort_id, self.version, tickets, self.coordinator_key)

    # -- speaking -----------------------------------------------------------------------------------------------

    def sign(self, message: Any) -> dict[str, Any]:
        """``message`` by the coordinator."""
        return wire.sign(self.coordinator_key, message)

    @staticmethod
    def sign_as(site: str, message: Any) -> dict[str, Any]:
        """``message`` by ``site``."""
        return wire.sign(key_of(site), message)

    def call(self, site: str, stage: str, envelope: Any) -> tuple[Any, bytes]:
        """What the member of ``site`` answers to ``envelope``; its error goes on."""
        member = self.members[site]
        if stage == "shares":
            return member.shares(envelope, mtls_keys=self.mtls, heads=head, now=NOW), b""
        if stage == "masked":
            return member.masked(envelope, self.vectors[site], self.noises.get(site), NOW)
        return getattr(member, stage)(envelope, NOW), b""

    # -- running ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One stage: message to each, answers back, ``advance``. Who is gone, or whose member ends, is lost."""
        stage = self.server.stage
        for site in self.server.waiting:
            if not self._exchange(site, stage):
                self.server.lost(site)
        self.server.advance(NOW)

    def run(self, until: str = "opened") -> Opened | None:
        """All stages up to (not including) ``until``."""
        while self.server.stage != until:
            self.step()
        if until != "opened":
            return None
        self.total = self.server.total.copy()
        return self.server.result()

    def _exchange(self, site: str, stage: str) -> bool:
        down = self._over(stage, "down", site, self.server.message(site))
        if down is None:
            return False
        try:
            answer, payload = self.call(site, stage, down)
        except Exception as error:
            self.errors[site] = error
            return False
        up = self._over(stage, "up", site, answer, payload)
        if up is None:
            return False
        if isinstance(up, tuple):
            up, payload = up
        try:
            self.server.take(site, up, payload, now=NOW)
        except Exception as error:
            self.refused.append((site, error))
            return False
        return True

    def _over(self, stage: str, direction: str, site: str, envelope: Any, payload: bytes = b"") -> Any:
        at = self.gone.get(site)
        if at is not None and _order(stage, direction) >= _order(*at):
            return None
        self.sent.append(Sent(stage, direction, site, envelope, payload))
        hook = self.hooks.get((stage, direction))
        return envelope if hook is None else hook(site, envelope)

    # -- judging ------------------------------------------------------------------------------------------------

    def expected(self, survivors: Iterable[str]) -> NDArray[Any]:
        """The plain sum over ``survivors`` in words of the ring, where each encodes exactly."""
        ring, total = self.server.view.ring, np.zeros(self.terms.size, np.int64)
        for site in survivors:
            value = self.vectors[site].astype(np.float64) * self.server.view.factor(site) * ring.scale
            assert (value == np.rint(value)).all(), "not exact in this ring: the test cannot compare bits"
            total += value.astype(np.int64) + self.noises.get(site, np.zeros(self.terms.size, np.int64))
        return total.astype(ring.dtype)


def _order(stage: str, direction: str) -> int:
    return 2 * STAGES.index(stage) + (direction == "up")
