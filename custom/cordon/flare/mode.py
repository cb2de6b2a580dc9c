"""What the loop of a job run asks of its two sides: FLARE, and the job's privacy mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from nvflare.app_common.abstract.fl_model import FLModel

from cordon import messages
from cordon.flare.admission import Peer
from cordon.params import Vector
from cordon.signing import PublicKey

if TYPE_CHECKING:
    from cordon.flare.run import Run


RETRY_S = 5.0
"""Until a site that could not trust the coordinator, or made no evidence, is challenged again."""


class Flare(Protocol):
    """What a run needs of FLARE: its workflow class, ``controllers.AsyncController``."""

    engine: Any
    abort_signal: Any

    def send(self, task: str, model: FLModel, site: str) -> None:
        """Give ``site`` a task; its answer, or what FLARE reports instead, goes into the inbox."""

    def save_model(self, model: FLModel) -> None: ...
    def info(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def exception(self, text: str) -> None: ...


class Mode(Protocol):
    """What differs between the privacy modes (``job.ControllerArgs.privacy``); made for a ``Run``."""

    answer: str
    """Part of a message that answers a ticket."""
    trust: str
    """What one has to trust, for the report."""
    max_payload: int
    """Bytes that an answer may carry."""

    def __init__(self, run: Run) -> None: ...
    def new_state(self, sites: Sequence[str], weights: Mapping[str, float], initial: Vector) -> Any:
        """The state machine of a job that begins."""

    def go_on(self, state: Any) -> None:
        """With the state machine of a process that died."""

    @property
    def terms(self) -> dict[str, Any] | None:
        """Secure aggregation's, for the event ``job``."""

    @property
    def open(self) -> bool:
        """Whether sites may have tickets."""

    @property
    def full(self) -> bool:
        """Whether the next version can be made."""

    @property
    def ended(self) -> str | None:
        """Why this mode ends the job, whatever the state machine says."""

    def judge(self, peer: Peer, key: PublicKey, parts: dict[str, Any], payload: bytes, now: datetime) -> None:
        """A message of a site that is attested and leased; SignatureError if ``key`` did not sign what it must."""

    def refused(self, peer: Peer, refusal: messages.Refusal) -> bool:
        """Whether a refusal was about something else than a ticket, and is dealt with."""

    def admitted(self, peer: Peer) -> None:
        """``peer`` showed evidence that passed; its challenge is answered by ``peer.evidence``."""

    def lost(self, site: str) -> None:
        """``site`` is lost or out."""

    def step(self, now: float) -> None:
        """Once in each turn of the loop: what waits for others or for a clock."""
