"""A coordinator of a masked job played by hand: one process's keys, several real sites, and what each is told is the
test's choice."""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.shareable import Shareable

from cordon.attest.keys import ProcessKeys
from cordon.flare import executors, plan
from cordon.secagg import roster, wire
from cordon.secagg.groups import GroupMap
from cordon.secagg.server import Aggregation
from cordon.secagg.terms import Terms

from .in_process import JOB_ID, Hand, Site, _now, message, open_message

ANSWER = {"shares": "shares", "masked": "masked", "confirm": "confirmation", "unmask": "unmask"}


class MaskedHand:
    """``hands``: site -> the hand that speaks to it."""

    def __init__(self, kits: Path, files: Mapping[str, bytes], hospitals: Iterable[str]) -> None:
        self.keys = ProcessKeys.generate()
        self.hands = {name: Hand(Site(kits, name, files), kits, files) for name in hospitals}
        for hand in self.hands.values():
            hand.keys = self.keys
        self.first = next(iter(self.hands.values()))
        self.kit, self.job = self.first.kit, self.first.job
        self.mtls_keys = {hospital.name: hospital.mtls_key for hospital in self.kit.study.roster}
        self.met: set[str] = set()
        self.tickets: dict[str, Any] = {}

    def attest(self) -> None:
        for hand in self.hands.values():
            assert "refusal" not in hand.attest()

    def terms(self, groups: GroupMap | None = None) -> Terms:
        return plan.terms(self.kit.study, self.job, JOB_ID, self.first.layout, groups)

    def once(self, site: str) -> Any:
        """Evidence for ``site``'s challenge, the first time."""
        first = site not in self.met
        self.met.add(site)
        return self.hands[site].evidence() if first else None

    def train(self, site: str, ticket: str | None = None, **changes: Any) -> Shareable:
        """The reply of ``site`` to the model under ``ticket``."""
        hand = self.hands[site]
        ticket = secrets.token_hex(16) if ticket is None else ticket
        return hand.train(hand.model(evidence=self.once(site), ticket=ticket, **changes))

    def ready(
        self, site: str, ticket: str | None = None, groups: GroupMap | None = None, **changes: Any
    ) -> wire.Ticket:
        """The ticket with which ``site`` says that it is ready; kept for ``start``."""
        parts, payload = open_message(self.train(site, ticket, **changes))
        assert set(parts) == {"ready"}
        assert payload == b""
        found, key = roster.read_ticket(parts["ready"], self.terms(groups), self.mtls_keys, _now())
        self.tickets[site] = (found, parts["ready"], key)
        return found

    def start(self, sites: Iterable[str], version: int = 0, groups: GroupMap | None = None) -> Aggregation:
        """A cohort of ``sites`` with their newest tickets."""
        tickets = {site: self.tickets[site] for site in sites}
        return Aggregation(self.terms(groups), secrets.token_hex(16), version, tickets, self.keys.signing_key)

    def say(self, site: str, stage: Any, envelope: Any, **parts: Any) -> Shareable:
        """The reply of ``site`` to one message of secure aggregation."""
        evidence = self.once(site)
        said = {"stage": stage, "cohort": "0" * 32, "message": envelope, **parts}
        if stage == "shares":
            said = {"links": {"after": -1, "sha256": self.hands[site].links}, **said}
        if evidence is not None:
            said["evidence"] = evidence
        return self.hands[site].site.execute(executors.SECAGG_TASK, message(said))

    def stage(self, aggregation: Aggregation, without: Iterable[str] = ()) -> str:
        """One honest stage with all that are waited for but ``without``; the next stage."""
        stage = aggregation.stage
        for site in aggregation.waiting:
            if site in without:
                aggregation.lost(site)
                continue
            parts, payload = open_message(self.say(site, stage, aggregation.message(site)))
            assert set(parts) == {ANSWER[stage]}, (site, parts)
            aggregation.take(site, parts[ANSWER[stage]], payload, now=_now())
        aggregation.advance(_now())
        return aggregation.stage

    def sign(self, body: Any) -> dict[str, Any]:
        """Whatever this coordinator signs."""
        return wire.sign(self.keys.signing_key, body)
