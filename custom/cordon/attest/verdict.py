"""Three-valued verdicts: what was asked of a piece of evidence, and what the answers come to.

A verifier asks every question it can and returns all answers together; it raises only for input that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from cordon.errors import AttestError, ConfigError

Result = Literal["pass", "fail", "not_checked"]
Kind = Literal["genuine", "revocation", "policy"]
Any_ = Literal["any"]
T = TypeVar("T")

ABSENT: Literal["no policy was given"] = "no policy was given"
MAX_DETAIL = 1000  # characters of a detail; four SHA-384 in hex, found and wanted, have 800


@dataclass(frozen=True)
class Check:
    """One question asked of the evidence.

    ``kind`` genuine: part of "did this vendor's hardware sign this"; revocation: as genuine, but with data from outside
    (CRL, OCSP) that may not be at hand; policy: whether what was signed is what is wanted. ``waived``: the policy says
    ``any``, so the answer does not count. ``clock``: the answer changes as time passes. ``code`` and ``detail`` become
    ``printable``: a stranger's words in them go to terminals, logs and audit files.
    """

    code: str
    result: Result
    detail: str
    kind: Kind = "policy"
    waived: bool = False
    clock: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", printable(self.code, MAX_DETAIL))
        object.__setattr__(self, "detail", printable(self.detail, MAX_DETAIL))


@dataclass(frozen=True)
class Appraisal:
    """The verdict on one piece of evidence.

    ``claims`` are the facts that it states, JSON-ready (byte strings as lower-case hex). They are worth something only
    as far as ``genuine`` goes. ``judged``: whether there was a policy.
    """

    type: str
    checks: tuple[Check, ...]
    claims: Mapping[str, Any] = field(default_factory=dict)
    judged: bool = True

    @property
    def genuine(self) -> bool:
        """The vendor's hardware signed this, and nothing at hand says that its key was revoked."""
        vendor = [check.result for check in self.checks if check.kind == "genuine"]
        revoked = any(check.kind == "revocation" and check.result == "fail" for check in self.checks)
        return bool(vendor) and set(vendor) == {"pass"} and not revoked

    @property
    def verdict(self) -> Result:
        """fail if any check failed; not_checked without a policy or if one that it asks for was not made; else pass."""
        counted = [check.result for check in self.checks if not check.waived]
        if "fail" in counted:
            return "fail"
        return "pass" if self.judged and self.genuine and "not_checked" not in counted else "not_checked"

    @property
    def codes(self) -> list[tuple[str, str, str]]:
        """(code, result, detail) of every check: JSON-ready."""
        return [(check.code, check.result, check.detail) for check in self.checks]

    def to_json(self) -> dict[str, Any]:
        """The object that ``cordon attest verify --json`` prints."""
        return {
            "genuine": self.genuine,
            "verdict": self.verdict,
            "checks": [{"code": each.code, "result": each.result, "detail": each.detail} for each in self.checks],
            "claims": dict(self.claims),
        }

    @property
    def open(self) -> list[Check]:
        """The checks that stand between this evidence and a pass."""
        return [check for check in self.checks if check.result != "pass" and not check.waived]

    def require(self) -> None:
        """AttestError with every check that stands between this evidence and a pass."""
        if self.verdict != "pass":
            reasons = [(check.code, f"{check.detail} ({check.result})") for check in self.open]
            raise AttestError(reasons or [("policy", ABSENT)])


def check(code: str, ok: bool, detail: str, kind: Kind = "policy") -> Check:
    """A question that was asked: ``ok`` is the answer."""
    return Check(code, "pass" if ok else "fail", detail, kind)


def against(code: str, said: str, wanted: T | Any_ | None, holds: Callable[[T], bool], kind: Kind = "policy") -> Check:
    """A question that a policy field asks: ``wanted`` is the field's value, ``any``, or None without a policy.

    Args:
        said: what the evidence says, in words that may be shown to anybody.
        holds: whether it is what ``wanted`` wants.
    """
    if wanted is None:
        return Check(code, "not_checked", f"{said} ({ABSENT})", kind)
    if wanted == "any":
        return Check(code, "not_checked", f"{said} (the policy says any)", kind, waived=True)
    ok = holds(wanted)
    return check(code, ok, said if ok else f"{said}, want {shown(wanted)}", kind)


def listed(code: str, value: str, wanted: tuple[str, ...] | Any_ | None) -> Check:
    """Whether ``value`` is in an allow-set, whole and exact."""
    return against(code, value, wanted, lambda allowed: value in allowed)


def valid_at(code: str, what: str, since: datetime, until: datetime, now: datetime, kind: Kind = "genuine") -> Check:
    """Whether ``now`` lies in [since, until]; all are timezone-aware."""
    period = f"{what} is valid {since:%Y-%m-%dT%H:%M:%SZ} to {until:%Y-%m-%dT%H:%M:%SZ}"
    result: Result = "pass" if since <= now <= until else "fail"
    return Check(code, result, f"{period}; now is {now:%Y-%m-%dT%H:%M:%SZ}", kind, clock=True)


def utc(now: datetime) -> datetime:
    """``now`` in UTC, in which dates are compared and shown.

    Raises:
        ConfigError: ``now``: no time zone, or outside of the years 1 to 9999 once in UTC.
    """
    if now.utcoffset() is None:
        raise ConfigError("now: want an instant with a time zone")
    try:
        return now.astimezone(UTC)
    except OverflowError as error:
        raise ConfigError(f"now: {now.isoformat()} has no date in UTC") from error


def printable(text: str, limit: int | None = None) -> str:
    """``text`` in printable ASCII, all else escaped, cut to ``limit`` characters.

    Evidence is a stranger's: a terminal obeys the control characters in it, and a line break forges a line of a log.

    >>> print(printable("a\\x1b[2J"), printable("0123456789", 8))
    a\\x1b[2J 01234...
    """
    whole = limit is None or len(text) <= limit
    if whole and text.isascii() and text.isprintable():
        return text
    plain = "".join(each if " " <= each <= "~" else ascii(each)[1:-1] for each in text[:limit])
    return plain if limit is None or (whole and len(plain) <= limit) else plain[: limit - 3] + "..."


def shown(wanted: object) -> str:
    """A policy's value in a message; long lists are cut."""
    if isinstance(wanted, tuple | list):
        head = ", ".join(map(str, wanted[:4]))
        return f"one of {head}" + (f" and {len(wanted) - 4} more" if len(wanted) > 4 else "")
    return str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
