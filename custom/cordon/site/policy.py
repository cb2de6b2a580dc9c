"""The site policy (``local/cordon.yml``, schema ``cordon/site/v1``): the job asks, the site decides.

``judge`` compares what a job asks with what the hospital and the study allow and raises *all* misses together, before
anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cordon.documents import Document
from cordon.errors import PolicyRefused
from cordon.job import Job
from cordon.job import Masked as MaskedArgs
from cordon.study import Name, Sha256, Spki, StudyContract

SCHEMA = "cordon/site/v1"

PrivacyMode = Literal["sealed", "masked"]


class Allow(Document, frozen=True, kw_only=True):
    """Exact names; nothing here is a prefix or a pattern."""

    studies: tuple[Name, ...]
    jobs: tuple[Name, ...]
    models: tuple[str, ...]
    privacy_modes: tuple[PrivacyMode, ...]
    contracts: tuple[Sha256, ...]


class PrivacyFloor(Document, frozen=True, kw_only=True):
    """The most that one job may spend. ``epsilon`` limits the RDP figure under ``adjacency`` at ``delta``."""

    epsilon: Annotated[float, Meta(gt=0)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    unit: Literal["patient"]
    adjacency: Literal["add_or_remove_one"]
    min_noise: Annotated[float, Meta(gt=0)]


class Masked(Document, frozen=True, kw_only=True):
    """Floors of secure aggregation (masked mode): a sum of fewer than ``u_min`` sites is not opened; ``c`` sites may
    collude with the coordinator; the site bears ``max_aborts`` cohorts that ended with a masked update of its own in
    them, and leaves the job at the next. ``min_own_noise`` is the least noise multiplier of the site's own share where
    noise is distributed: what holds if more than ``c`` collude.
    """

    u_min: Annotated[int, Meta(ge=3)]
    c: Annotated[int, Meta(ge=0)]
    max_aborts: Annotated[int, Meta(ge=0)]
    min_own_noise: Annotated[float, Meta(gt=0)] = 1.0


class Data(Document, frozen=True, kw_only=True):
    """Where the hospital's own data lies: in an encrypted ``vault``, or plain in ``unsafe_source`` (POC only).

    Paths resolve against the policy file's folder.
    """

    connector: Literal["fhir", "sql", "omop", "pdf", "csv"]
    mapping: str
    vault: str | None = None
    unsafe_source: str | None = None

    def __post_init__(self) -> None:
        if (self.vault is None) == (self.unsafe_source is None):
            raise ValueError("data names either a vault or an unsafe_source")


class Attestation(Document, frozen=True, kw_only=True):
    """The policy file that appraises the coordinator's evidence; resolves against the policy file's folder."""

    policy: str


class Broker(Document, frozen=True, kw_only=True):
    """The hospital's key broker. ``spki`` pins its TLS key (base64 DER); no certificate authority is asked."""

    url: Annotated[str, Meta(pattern=r"\Ahttps://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?\Z")]
    spki: Spki


class Caps(Document, frozen=True, kw_only=True):
    """Resource limits of one job at this site."""

    max_rounds: Annotated[int, Meta(ge=1)] = 1000
    threads: Annotated[int, Meta(ge=1, le=256)] = 1


class Egress(Document, frozen=True, kw_only=True):
    """What may leave beside signed messages. Off unless the hospital says otherwise: a log line can carry a row."""

    log_streaming: bool = False


class UnsafePoc(Document, frozen=True, kw_only=True):
    """Misbehaviour of a POC site, to show what the federation does about it. Refused outside profile ``poc``."""

    extra_delay_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    flip_labels: bool = False
    scale_update: Annotated[float, Meta(ge=-1000, le=1000)] = 1.0


class SitePolicy(Document, frozen=True, kw_only=True):
    """One hospital's policy."""

    version: Literal["cordon/site/v1"]
    site: Name
    allow: Allow
    dp: PrivacyFloor
    data: Data
    attestation: Attestation
    masked: Masked | None = None
    broker: Broker | None = None
    caps: Caps = Caps()
    egress: Egress = Egress()
    unsafe_poc: UnsafePoc | None = None

    def __post_init__(self) -> None:
        if (self.data.vault is None) != (self.broker is None):
            raise ValueError("a vault wants a broker that keeps its key, and a broker a vault")

    def resolve(self, folder: Path, path: str) -> Path:
        """``path`` of this policy, which lies in ``folder``."""
        return (folder / path).resolve()


def judge(policy: SitePolicy, study: StudyContract, job: Job, plan_epsilon_rdp: float) -> None:
    """Raise PolicyRefused with every reason why ``job`` may not run here; return None if it may.

    Args:
        plan_epsilon_rdp: epsilon of the job's *whole* plan (all rounds) by the RDP accountant at ``policy.dp.delta``.
    """
    asks, dp = job.executor, job.executor.dp
    misses: list[tuple[str, str]] = []

    def want(ok: bool, code: str, detail: str) -> None:
        if not ok:
            misses.append((code, detail))

    def listed(value: str, allowed: tuple[str, ...], code: str, what: str, whose: str) -> None:
        want(value in allowed, code, f"{what} {value!r} is not in {whose} (allowed: {', '.join(allowed) or 'none'})")

    listed(study.study, policy.allow.studies, "study_not_allowed", "study", "the site's policy")
    for allowed, whose in ((policy.allow.jobs, "the site's policy"), (study.jobs, "the study contract")):
        listed(job.name, allowed, "job_not_allowed", "job", whose)
    for allowed, whose in ((policy.allow.models, "the site's policy"), (study.models, "the study contract")):
        listed(asks.model, allowed, "model_not_allowed", "model", whose)
    for allowed, whose in ((policy.allow.contracts, "the site's policy"), (study.contracts, "the study contract")):
        listed(job.contract_digest, allowed, "contract_not_allowed", "feature contract", whose)
    mode = job.controller.privacy
    listed(mode, policy.allow.privacy_modes, "privacy_mode_not_allowed", "privacy mode", "the site's policy")
    want(
        study.profile == "poc" or (policy.unsafe_poc is None and policy.data.unsafe_source is None),
        "unsafe_outside_poc",
        "the policy has unsafe_poc or data.unsafe_source outside POC",
    )
    want(
        study.release is not None,
        "no_release_right",
        "the study contract names nobody who may open its models (release), and no job writes one in the clear",
    )
    want(
        plan_epsilon_rdp <= policy.dp.epsilon,
        "epsilon_over_policy",
        f"the job's plan spends epsilon {plan_epsilon_rdp:.3f} (RDP, delta {policy.dp.delta:g}, "
        f"{job.controller.rounds_per_site} rounds of {dp.steps} steps), the site allows {policy.dp.epsilon:g}",
    )
    masked = job.controller.masked
    if masked is not None:
        misses += _under_masked_floors(masked, dp.noise_multiplier, policy.masked)
    want(
        # Shared-out noise is the sum's; the site itself adds what its part of that lacks (cordon.dp.distributed).
        (masked is not None and masked.distributed) or dp.noise_multiplier >= policy.dp.min_noise,
        "noise_under_policy",
        f"noise multiplier {dp.noise_multiplier:g} is under the site's floor {policy.dp.min_noise:g}",
    )
    want(
        dp.delta <= policy.dp.delta,
        "delta_over_policy",
        f"the job states epsilon at delta {dp.delta:g}, the site allows at most {policy.dp.delta:g}",
    )
    want(dp.unit == policy.dp.unit, "unit_not_allowed", f"privacy unit {dp.unit!r}, the site wants {policy.dp.unit!r}")
    want(
        job.controller.rounds_per_site <= policy.caps.max_rounds,
        "rounds_over_cap",
        f"{job.controller.rounds_per_site} rounds, the site's cap is {policy.caps.max_rounds}",
    )
    if misses:
        raise PolicyRefused(misses)


def _under_masked_floors(asks: MaskedArgs, own_noise: float, floors: Masked | None) -> list[tuple[str, str]]:
    """(code, detail) for every term of a masked job that is weaker than the site's floor. ``own_noise``: the noise
    multiplier of the site's own share where noise is distributed."""
    if floors is None:
        return [("masked_without_floors", "the job is masked, and the site's policy has no section masked")]
    wanted = (
        (asks.u_min >= floors.u_min, "u_min_under_policy",
         f"sums open with {asks.u_min} sites or more (u_min), the site wants at least {floors.u_min}"),
        (asks.c >= floors.c, "collusion_under_policy",
         f"sums hold against {asks.c} colluding sites (c), the site wants at least {floors.c}"),
        (asks.max_aborts <= floors.max_aborts, "aborts_over_policy",
         f"{asks.max_aborts} cohorts may end with a masked update (max_aborts), the site allows {floors.max_aborts}"),
        (not asks.distributed or own_noise >= floors.min_own_noise, "own_noise_under_policy",
         f"noise multiplier {own_noise:g} of the site's own share is under the site's floor {floors.min_own_noise:g}"),
    )  # fmt: skip
    return [(code, detail) for ok, code, detail in wanted if not ok]
