"""Tokens of Microsoft Azure Attestation (MAA): JWTs about confidential VMs, judged with pinned keys (README.md).

Claims: learn.microsoft.com/azure/attestation/claim-sets, .../trust-domain-extensions-eat-profile and
.../attestation-token-examples. Keys: the JWKS that the instance serves at ``/certs``, supplied as a file. ``jku``,
``jwk`` and ``x5c`` in a token's header are the token's own word and are not looked at.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from cordon.attest.azure import jose
from cordon.attest.azure.policy import MaaPolicy
from cordon.attest.verdict import Appraisal, Check, against, check, listed, utc

__all__ = ["MaaPolicy", "verify"]

MAX_TOKEN = 64 * 1024  # bytes
MAX_JWKS = 256 * 1024
MIN_BITS = 2048
Tee = Literal["sevsnpvm", "tdxvm"]
SVN = {
    "bootloader": "x-ms-sevsnpvm-bootloader-svn",
    "tee": "x-ms-sevsnpvm-tee-svn",
    "snpfw": "x-ms-sevsnpvm-snpfw-svn",
    "microcode": "x-ms-sevsnpvm-microcode-svn",
    "guest": "x-ms-sevsnpvm-guestsvn",
}
MEASUREMENT: dict[Tee, str] = {"sevsnpvm": "x-ms-sevsnpvm-launchmeasurement", "tdxvm": "tdx_mrtd"}
HOST_DATA: dict[Tee, str] = {"sevsnpvm": "x-ms-sevsnpvm-hostdata", "tdxvm": "tdx_mrconfigid"}


def verify(
    token: bytes, *, jwks: bytes, now: datetime, nonce: bytes | None = None, policy: MaaPolicy | None = None
) -> Appraisal:
    """Judge one MAA token.

    Args:
        token: compact JWS, at most 64 KiB.
        jwks: the MAA instance's keys (JSON Web Key Set), pinned by whoever supplies the file.
        now: timezone-aware; ``nbf``, ``iat`` and ``exp`` are judged by it without leeway.
        nonce: this verifier's nonce. The token must carry it as ``x-ms-runtime.client-payload.nonce`` (base64 of the
            bytes or of their hex) or as ``nonce`` (base64url of the bytes, or their hex); one of both that is there and
            differs is a failure.
        policy: None judges genuineness (and debug) alone.

    Returns:
        Appraisal of type ``maa``. ``claims["report_data"]`` is ``user-data`` of the VM's runtime claims, or "".

    Raises:
        ConfigError: ``token_format``, ``jwks_format`` or ``now`` (no time zone).
    """
    # 1. Parse.
    now = utc(now)
    parts = jose.parse_jws(token, "token_format", MAX_TOKEN)
    keys = jose.read_jwks(jwks, "jwks_format", MAX_JWKS)
    tee = _object(parts.body, "x-ms-isolation-tee")
    kind: Tee | None = next((each for each in MEASUREMENT if tee.get("x-ms-attestation-type") == each), None)
    runtime = _object(tee, "x-ms-runtime")

    # 2. Signed by one pinned key, with the one algorithm.
    checks = list(_signature(parts, keys))

    # 3. In force now.
    checks += _times(parts.body, now, policy)

    # 4. About a confidential VM at all: Trusted Launch VMs get tokens from the same keys.
    outer = parts.body.get("x-ms-attestation-type")
    checks.append(check("attestation_type", outer == "azurevm", f"{jose.said(outer)}, want 'azurevm'", "genuine"))
    inner = tee.get("x-ms-attestation-type")
    said = f"x-ms-isolation-tee is of type {jose.said(inner)}, known are sevsnpvm and tdxvm"
    checks.append(check("isolation_tee", kind is not None, said, "genuine"))

    # 5. Made for this verifier, by a wanted instance, about a wanted VM.
    checks += _instance(parts.body, nonce, policy)
    checks += _vm(parts.body, tee, runtime, kind, policy)
    return Appraisal("maa", tuple(checks), _claims(parts.body, tee, runtime, kind), policy is not None)


def _signature(token: jose.Jws, keys: list[tuple[str, RSAPublicKey]]) -> Iterator[Check]:
    algorithm, kid = token.header.get("alg"), token.header.get("kid")
    odd = {name for name in ("crit", "b64", "zip") if name in token.header}
    header = f"alg is {jose.said(algorithm)}, want 'RS256'" + (
        f"; {', '.join(sorted(odd))} is not understood" if odd else ""
    )
    yield check("jwt_header", algorithm == "RS256" and not odd, header, "genuine")
    named = [key for name, key in keys if name == kid]
    yield check("jwt_key", len(named) == 1, f"kid {jose.said(kid)} names {len(named)} pinned keys, want 1", "genuine")
    if len(named) != 1:
        yield Check("jwt_signature", "not_checked", "no pinned key is named", "genuine")
        return
    # RS256 whatever the header says: the algorithm follows from the pinned key.
    key = named[0]
    holds, strong = jose.rs256_holds(key, token.signature, token.signed), key.key_size >= MIN_BITS
    said = (
        f"RS256 of the pinned RSA-{key.key_size} key {'holds' if holds else 'does not hold'}; at least {MIN_BITS} bits"
    )
    yield check("jwt_signature", holds and strong, said, "genuine")


def _times(body: dict[str, Any], now: datetime, policy: MaaPolicy | None) -> Iterator[Check]:
    at = math.floor(now.timestamp())  # the claims are whole seconds
    for name in ("nbf", "iat", "exp"):
        time = _number(body.get(name))
        ok = time is not None and (at < time if name == "exp" else time <= at)
        said = f"{name} is {jose.said(body.get(name))}, now is {at}"
        yield Check(name, "pass" if ok else "fail", said, "genuine", clock=True)
    issued = _number(body.get("iat"))
    age = "no time of issue" if issued is None else f"issued {at - issued} s ago"
    wanted = None if policy is None else policy.max_age_s
    yield against("max_age", age, wanted, lambda limit: issued is not None and 0 <= at - issued <= limit)


def _instance(body: dict[str, Any], nonce: bytes | None, policy: MaaPolicy | None) -> Iterator[Check]:
    yield listed("issuer", jose.text(body.get("iss")), None if policy is None else policy.issuer)
    yield listed(
        "maa_policy_hash", jose.text(body.get("x-ms-policy-hash")), None if policy is None else policy.policy_hash
    )
    payload = _object(_object(body, "x-ms-runtime"), "client-payload").get("nonce")
    plain = body.get("nonce")
    said = f"client-payload.nonce is {jose.said(payload)}, nonce is {jose.said(plain)}"
    if nonce is None:
        waived = policy is not None and policy.nonce == "any"
        yield Check("nonce", "not_checked", f"{said} (no nonce was given)", waived=waived)
        return
    text = nonce.hex()
    encoded = [base64.b64encode(data).decode() for data in (nonce, text.encode())]
    forms = [text, base64.urlsafe_b64encode(nonce).decode().rstrip("=")]
    answers = ([payload in encoded] if payload is not None else []) + ([plain in forms] if plain is not None else [])
    yield check("nonce", bool(answers) and all(answers), f"{said}, want {text}")


def _vm(
    body: dict[str, Any], tee: dict[str, Any], runtime: dict[str, Any], kind: Tee | None, policy: MaaPolicy | None
) -> Iterator[Check]:
    def wanted(field: str) -> Any:
        return None if policy is None else getattr(policy, field)

    status = tee.get("x-ms-compliance-status")
    yield listed("isolation_type", jose.text(tee.get("x-ms-attestation-type")), wanted("isolation_tee"))
    yield listed("compliance_status", jose.text(status), wanted("compliance_status"))
    yield _debug(tee, kind, policy)
    for code, claim in (
        ("migration", "x-ms-sevsnpvm-migration-allowed"),
        ("secure_boot", "secureboot"),
        ("debuggers_disabled", "x-ms-azurevm-debuggersdisabled"),
    ):
        yield _flag(code, claim, (tee if code == "migration" else body).get(claim), wanted(code))
    vmpl = tee.get("x-ms-sevsnpvm-vmpl")
    yield against("vmpl", f"VMPL is {jose.said(vmpl)}", wanted("vmpl"), lambda must: type(vmpl) is int and vmpl == must)
    yield listed("measurement", jose.text(_of(tee, MEASUREMENT, kind)), wanted("measurement"))
    yield listed("host_data", jose.text(_of(tee, HOST_DATA, kind)), wanted("host_data"))
    yield listed("id_key_digest", jose.text(tee.get("x-ms-sevsnpvm-idkeydigest")), wanted("id_key_digest"))
    yield listed("tcb_status", jose.text(tee.get("attester_tcb_status")), wanted("tcb_status"))
    minima = wanted("min_svn")
    if isinstance(minima, dict):
        for name, least in sorted(minima.items()):
            svn = tee.get(SVN[name])
            yield check(
                f"svn_{name}", type(svn) is int and svn >= least, f"{SVN[name]} is {jose.said(svn)}, want {least}"
            )
    else:
        yield against("min_svn", "security version numbers", minima, lambda _: False)
    ids = {
        jose.text(value).lower()
        for value in (body.get("x-ms-azurevm-vmid"), _configuration(runtime).get("vmUniqueId"))
        if value is not None
    }
    one = f"vm ids are {', '.join(sorted(ids)) or 'absent'}"
    yield against("vm_unique_id", one, wanted("vm_unique_id"), lambda allowed: bool(ids) and ids <= set(allowed))


def _debug(tee: dict[str, Any], kind: Tee | None, policy: MaaPolicy | None) -> Check:
    """Fails with and without a policy unless that says any. Every claim about it must say no, and one must be there."""
    attributes = tee.get("tdx_td_attributes")
    answers: dict[str, tuple[Any, Any]] = {}
    if kind == "sevsnpvm":
        answers["x-ms-sevsnpvm-is-debuggable"] = (tee.get("x-ms-sevsnpvm-is-debuggable"), False)
    elif kind == "tdxvm":
        answers["tdx_td_attributes_debug"] = (tee.get("tdx_td_attributes_debug"), False)
        answers["dbgstat"] = (tee.get("dbgstat", "disabled"), "disabled")
        answers["tdx_td_attributes bit 0"] = (_lowest_bit(attributes) if "tdx_td_attributes" in tee else 0, 0)
    said = (
        ", ".join(f"{name} is {jose.said(value)}" for name, (value, _) in answers.items())
        or "nothing says whether it can be debugged"
    )
    if policy is not None and policy.debug == "any":
        return Check("debug", "not_checked", f"{said} (the policy says any)", waived=True)
    safe = bool(answers) and all(type(value) is type(must) and value == must for value, must in answers.values())
    return check("debug", safe, said)


def _claims(body: dict[str, Any], tee: dict[str, Any], runtime: dict[str, Any], kind: Tee | None) -> dict[str, Any]:
    user_data = runtime.get("user-data")
    plain = (
        isinstance(user_data, str) and len(user_data) == 128 and all(c in "0123456789abcdefABCDEF" for c in user_data)
    )
    return {
        "issuer": body.get("iss"),
        "issued_at": body.get("iat"),
        "expires_at": body.get("exp"),
        "maa_policy_hash": body.get("x-ms-policy-hash"),
        "isolation_tee": kind,
        "compliance_status": tee.get("x-ms-compliance-status"),
        "measurement": jose.text(_of(tee, MEASUREMENT, kind)),
        "host_data": jose.text(_of(tee, HOST_DATA, kind)),
        "report_data": user_data.lower() if plain and isinstance(user_data, str) else "",
        "hardware_report_data": tee.get("x-ms-sevsnpvm-reportdata", tee.get("tdx_report_data")),
        "vm_configuration": _configuration(runtime),
        "vm_id": body.get("x-ms-azurevm-vmid"),
    }


def _flag(code: str, claim: str, value: Any, wanted: Any) -> Check:
    return against(code, f"{claim} is {jose.said(value)}", wanted, lambda must: value is must)


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _configuration(runtime: dict[str, Any]) -> dict[str, Any]:
    return _object(runtime, "vm-configuration")


def _of(tee: dict[str, Any], names: dict[Tee, str], kind: Tee | None) -> Any:
    return None if kind is None else tee.get(names[kind])


def _number(value: Any) -> int | None:
    """A NumericDate of whole seconds (RFC 7519 section 2), if it is one that a clock can show."""
    return value if type(value) is int and abs(value) < 1 << 53 else None


def _lowest_bit(attributes: Any) -> int | None:
    """Bit 0 (DEBUG) of TD attributes as little-endian hex; None if that is not what they are."""
    try:
        return bytes.fromhex(attributes)[0] & 1 if isinstance(attributes, str) and len(attributes) == 16 else None
    except (ValueError, IndexError):
        return None
