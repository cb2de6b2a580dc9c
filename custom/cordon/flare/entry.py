"""How a site gets into a job and stays in it: its evidence when it comes, its leases while time goes by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cordon.attest.appraise import EvidenceAppraisal
from cordon.attest.verdict import printable
from cordon.errors import AttestError, ConfigError, SignatureError
from cordon.flare import codec
from cordon.flare.admission import Peer
from cordon.flare.mode import RETRY_S
from cordon.report.events import MAX_CODES

if TYPE_CHECKING:
    from cordon.flare.run import Run


class Entry:
    """What a run does about evidence."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def watch(self, peer: Peer, now: float) -> None:
        """Take a site out whose parent process lost its lease or that leaves a challenge open; ask again when due."""
        run = self._run
        if run.state.state[peer.name] in ("refused", "excluded"):
            return
        held = run.admission.parent_standing(peer)
        if held and not peer.held:
            run.lose(peer.name, f"not attested with the coordinator: {held}")
        elif peer.held and not held and peer.keys is not None:
            run.state.returned(peer.name)
        peer.held = held
        if run.admission.late(peer) and not peer.overdue:
            peer.overdue = True
            run.lose(peer.name, f"no evidence within {run.kit.attest_policy.max_age_s:.0f} s")
        if peer.ask_at is not None and now >= peer.ask_at:
            run.challenge(peer)

    def admit(self, peer: Peer, kind: str, what: Any) -> None:
        """The site's answer to the challenge: its attested key, or why it is not part of this job."""
        run = self._run
        if kind != "result":
            peer.nonce = b""
            run.lose(peer.name, f"no evidence: error inside the site ({what}); its own log has the details")
            return
        if run.admission.late(peer):
            # Too old to count; the site is there, so it may show fresh evidence. Until then the job goes on without it.
            run.lose(peer.name, "evidence came too late; challenged anew")
            run.challenge(peer)
            return
        try:
            parts, _ = codec.from_model(what, limit=0)
            if "evidence" not in parts and "refusal" in parts:  # nobody signed it with a key that is known yet
                self._unavailable(peer, "it says that it makes no evidence now")
                return
            appraisal = run.admission.judge(peer, parts)
            run.log.write(
                "attested", site=peer.name, verdict=appraisal.verdict, type=appraisal.type, codes=_codes(appraisal)
            )
            key = appraisal.signing_key  # raises unless the verdict is pass
            if "refusal" in parts:
                run.refused(peer, parts["refusal"], key)
                return
            run.admission.admit(peer, appraisal, parts)
            if not peer.held:
                run.state.returned(peer.name)  # where its answer came after the job stopped waiting for it
            waiting, resend = peer.waiting, peer.resend
            peer.waiting, peer.resend = None, False
            if waiting is not None:
                run.judge(peer, "result", waiting)
            elif resend:  # the same ticket: a site that trained for it sends the same bytes
                run.ask(peer)
            run.mode.admitted(peer)
        except ConfigError as error:  # this side's own device makes no evidence now: not the site's fault
            self._unavailable(peer, f"the coordinator makes no evidence now ({printable(str(error), 200)})")
        except (AttestError, SignatureError) as error:
            peer.nonce, peer.waiting = b"", None
            run.flare.warning(f"{peer.name} is not admitted: {printable(str(error), 300)}")
            run.leave(peer.name, "attestation_failed")

    def _unavailable(self, peer: Peer, why: str) -> None:
        """No evidence could be made, on either side: ask again for as long as the job goes on."""
        peer.nonce, peer.ask_at = b"", time.monotonic() + RETRY_S
        self._run.lose(peer.name, f"{why}; it is asked again")


def _codes(appraisal: EvidenceAppraisal) -> list[tuple[str, str, str]]:
    """The checks for the event log: those that count first, no more than a line holds (eight GPUs make 200)."""
    told = sorted(appraisal.checks, key=lambda each: (each.waived, each.result == "pass"))
    return [(each.code, each.result, each.detail[:300]) for each in told[:MAX_CODES]]
