"""What Intel says about platforms, and the judgement of a quote by it: TCB info, QE identity, CRLs, through dcap-qvl.

The file is the JSON that dcap-qvl reads and writes (``QuoteCollateralV3``). Sources: Intel PCS API v4 (TCB info V3,
enclave identity V2); dcap-qvl 0.7.0.
"""

from __future__ import annotations

import calendar
import functools
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from cryptography import x509

from cordon.attest.dcap.pck import UNREADABLE, first_der, pem
from cordon.attest.dcap.tcb_info import Dated, Moment
from cordon.errors import ConfigError

MAX_COLLATERAL = 256 * 1024  # bytes; about 20000 are usual

# The parts that dcap-qvl judges after the signatures of the quote, as codes of checks; crl is of kind revocation.
JUDGED = ("tcb_info", "qe_identity", "tcb_level", "collateral_chain", "crl")

# What dcap-qvl 0.7.0 says when the platform is right but it does not like the workload, which is for the policy to
# judge. It says so last, and nothing rests on that: ``evaluation`` then judges the platform anew.
WORKLOAD = frozenset(
    {
        "Debug mode is enabled",
        "Invalid MR service TD",
        "Reserved bits in TD attributes are set",
        "SEPT_VE_DISABLE is not enabled",
        "SERVTD_EXT is enabled",
        "TD migration is enabled",
        "TD profiling is enabled",
    }
)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None


class _Document(Dated, frozen=True):
    issueDate: Moment
    nextUpdate: Moment


class Level(Dated, frozen=True):
    """A TCB level as a document of the collateral has it."""

    tcbStatus: str
    tcbDate: Moment


class QeLevel(msgspec.Struct, frozen=True):
    """The level that the quoting enclave reaches."""

    tcb_level: Level
    tcb_eval_data_number: int


class PlatformLevel(msgspec.Struct, frozen=True):
    """The level that the platform reaches."""

    tcb_level: Level


class Tcb(msgspec.Struct, frozen=True):
    """The worst of platform, TDX module and QE."""

    status: str
    advisory_ids: list[str]
    eval_data_number: int


class Verified(msgspec.Struct, frozen=True):
    """dcap-qvl's claims about a quote that it accepts, as far as they are used."""

    tcb: Tcb
    platform: PlatformLevel
    qe: QeLevel
    earliest_expiration_date: int
    qe_iden_earliest_expiration_date: int

    @property
    def evaluation_number(self) -> int:
        """The older of TCB info's and QE identity's."""
        return min(self.tcb.eval_data_number, self.qe.tcb_eval_data_number)

    @property
    def expires(self) -> datetime:
        """When the first of all documents, certificates and CRLs lapses."""
        return datetime.fromtimestamp(min(self.earliest_expiration_date, self.qe_iden_earliest_expiration_date), UTC)


@dataclass(frozen=True)
class Period:
    """When one document of the collateral is valid."""

    name: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Collateral:
    """Parsed, not verified. ``periods``: TCB info, QE identity, PCK CRL, root CA CRL, in this order."""

    file: _File
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_signature: bytes
    qe_identity_signature: bytes
    periods: tuple[Period, ...]


@dataclass(frozen=True)
class Judgement:
    """dcap-qvl's answer: what it ``verified``, or its one ``objection``."""

    verified: Verified | None
    objection: str = ""

    @property
    def of_workload(self) -> bool:
        """Whether the objection is to the workload alone."""
        return self.objection in WORKLOAD


def parse(data: bytes) -> Collateral:
    """Collateral from its JSON.

    ``pck_certificate_chain``, with which the file may replace the quote's own chain, is not used.

    Raises:
        ConfigError: ``collateral_format``: not bytes, too long, not this JSON, not hex, not dates, not CRLs.
    """
    if not isinstance(data, bytes):
        raise _malformed(f"is bytes, and this is {type(data).__name__}")
    if len(data) > MAX_COLLATERAL:
        raise _malformed(f"has {len(data)} bytes, want at most {MAX_COLLATERAL}")
    return _parsed(data)


@functools.lru_cache(maxsize=16)  # the same few files for weeks, and every lease asks
def _parsed(data: bytes) -> Collateral:
    try:
        file = msgspec.json.decode(data, type=_File)
        raw = [bytes.fromhex(text) for text in (file.root_ca_crl, file.pck_crl)]
        signatures = [bytes.fromhex(text) for text in (file.tcb_info_signature, file.qe_identity_signature)]
        dated = [msgspec.json.decode(text, type=_Document) for text in (file.tcb_info, file.qe_identity)]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _malformed(f"cannot be read: {error}") from error
    periods = [
        Period(name, each.issueDate, each.nextUpdate)
        for name, each in zip(("TCB info", "QE identity"), dated, strict=True)
    ]
    periods += [_crl_period("PCK CRL", raw[1]), _crl_period("root CA CRL", raw[0])]
    return Collateral(file, raw[0], raw[1], signatures[0], signatures[1], tuple(periods))


def judge(quote: bytes, collateral: Collateral, now: datetime, root: bytes) -> Judgement:
    """Ask dcap-qvl whether ``quote`` is genuine, and on what TCB level.

    It looks at everything but the policy: ``claims_only`` reports any status but Revoked, where ``verify`` would call
    OutOfDate a success and ``strict`` would hide which part it did not like.

    Args:
        quote: without bytes after its declared end.
        root: DER of the trust anchor.
    """
    import dcap_qvl  # type: ignore[import-untyped]

    file, seconds = collateral.file, max(0, calendar.timegm(now.utctimetuple()))
    texts = {file.tcb_info_issuer_chain, file.qe_identity_issuer_chain}  # mostly one and the same
    issuers = {text: _issuers(text, root) for text in texts}
    package = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain="",  # not looked at
        root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        tcb_info_issuer_chain=issuers[file.tcb_info_issuer_chain],
        tcb_info=file.tcb_info,
        tcb_info_signature=collateral.tcb_info_signature,
        qe_identity_issuer_chain=issuers[file.qe_identity_issuer_chain],
        qe_identity=file.qe_identity,
        qe_identity_signature=collateral.qe_identity_signature,
    )
    policy = dcap_qvl.QuotePolicy.claims_only(seconds)
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(quote, package, seconds, policy)
        return Judgement(msgspec.json.decode(claims.to_json(), type=Verified))
    except (ValueError, TypeError, msgspec.ValidationError) as error:
        return Judgement(None, " ".join(str(error).removeprefix("Verification failed: ").split()))


def _issuers(text: str, root: bytes) -> str:
    """The issuer chain that dcap-qvl gets to see: the first certificate in ``text``, and the pinned root.

    dcap-qvl takes any chain to the root, so a PCK would do as the signer of TCB info: whoever got the key of one broken
    platform could declare every platform up to date. With no other issuer at hand, the root itself must have certified
    the signer. It also takes PEM blocks of any label, which other readers pass over, so it gets no text but ours.
    """
    return (pem(first_der(text)) + pem(root)).decode()


def stamp(at: datetime) -> str:
    """A time in the form that Intel's documents use."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _crl_period(name: str, data: bytes) -> Period:
    try:
        crl = x509.load_der_x509_crl(data)
        since, until = crl.last_update_utc, crl.next_update_utc
    except UNREADABLE as error:
        raise _malformed(f"has no readable {name}: {error}") from error
    if until is None:
        raise _malformed(f"has a {name} without an end")
    return Period(name, since, until)


def _malformed(text: str) -> ConfigError:
    return ConfigError(f"collateral_format: collateral {text}")
