"""Tokens of NVIDIA's remote attestation service (NRAS): it looked at the device, we look at its word.

A token is a detached EAT: JSON ``[["JWT", overall], {name: device JWT, ...}]``. The overall JWT has the result and, per
device, the SHA-256 of that device's JWT; the device JWTs have the claims. All are ES384 under a key of the service's
JWKS, which is a pinned file here: no URL in a token is followed and no algorithm is taken from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from cordon.attest.nvgpu import dice
from cordon.attest.nvgpu.evidence import MAX_DEVICES, parse_json
from cordon.attest.nvgpu.policy import NrasPolicy, asked
from cordon.attest.verdict import Appraisal, Check, Kind, against, check, utc
from cordon.errors import ConfigError

MAX_TOKEN = 1024 * 1024  # bytes
MAX_JWKS = 64 * 1024  # bytes
NAME = r"(GPU|SWITCH)-[0-9]{1,3}"
UNSIGNED = "not asked: the token's signature or its digests do not hold"
# What the service found out about a report; the same names for GPU and switch. Each has to be there and true.
FINDINGS = (
    "x-nvidia-{kind}-arch-check",
    "x-nvidia-{kind}-attestation-report-cert-chain-fwid-match",
    "x-nvidia-{kind}-attestation-report-nonce-match",
    "x-nvidia-{kind}-attestation-report-parsed",
    "x-nvidia-{kind}-attestation-report-signature-verified",
)

Claims = Mapping[str, Any]


def verify(
    token: bytes,
    *,
    jwks: bytes,
    nonce: bytes | None,
    now: datetime,
    policy: NrasPolicy | None = None,
) -> Appraisal:
    """The verdict on one token.

    Args:
        token: the service's answer, JSON.
        jwks: the service's key set, a pinned file (JSON); only its P-384 keys count.
        nonce: the 32 bytes of the challenge; None: freshness is not checked.
        now: timezone-aware; there is no leeway.

    Raises:
        ConfigError: token_format, jwks_format, nonce_format or now.
    """
    # 1. Parse.
    now = utc(now)
    if nonce is not None and len(nonce) != 32:
        raise ConfigError(f"nonce_format: nonce has {len(nonce)} bytes, want 32")
    overall_text, device_texts = _split(parse_json(token, MAX_TOKEN, "token_format"))
    keys = _keys(parse_json(jwks, MAX_JWKS, "jwks_format"))

    # 2. Every part is signed by a pinned key; nothing is read out of one that is not.
    decoded = {name: _decode(text, keys) for name, text in [("overall", overall_text), *device_texts.items()]}
    bad = [f"{name}: {result}" for name, result in decoded.items() if isinstance(result, str)]
    checks = [check("token_signature", not bad, "; ".join(bad) or "ES384 by pinned keys", "genuine")]
    overall = decoded.pop("overall")
    devices = {name: claims for name, claims in decoded.items() if not isinstance(claims, str)}
    if bad or isinstance(overall, str):
        checks += [Check(code, "not_checked", UNSIGNED, kind) for code, kind in _CODES]
        return Appraisal("nras", tuple(checks), {}, policy is not None)

    # 3. The devices' JWTs are those that the overall JWT is about (splicing).
    digests = _digests(overall)
    wanted = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in device_texts.items()}
    same = bool(wanted) and digests == wanted
    checks.append(check("token_submods", same, f"digests of {', '.join(sorted(wanted)) or 'nothing'}", "genuine"))

    # 4. Time, issuer, challenge: of every part.
    parts = {"overall": overall, **devices}
    checks += [
        _time(parts, now),
        _age(overall, now, policy),
        _issuer(parts, policy),
        _nonce(parts, nonce),
    ]
    # 5. The service's findings; each device has to have each of them.
    checks += [
        _all("overall_result", {"overall": overall}, _is("x-nvidia-overall-att-result", True), "true", "genuine"),
        _all("report_findings", devices, _found, "every finding there and true", "genuine"),
        _all("certificates", devices, _certificates, "every certificate chain valid", "genuine"),
        _all("measurements", devices, _is("measres", "success"), "measres success"),
        _all("secure_boot", devices, _is("secboot", True), "secboot true"),
        _all("debug", devices, _is("dbgstat", "disabled"), "dbgstat disabled"),
        Check("cc_mode", "not_checked", "a token does not state CC mode or developer tools", waived=True),
    ]
    # 6. What the policy wants.
    checks += _wanted(devices, policy)
    return Appraisal("nras", tuple(checks), {"overall": overall, "devices": devices}, policy is not None)


def _split(tree: Any) -> tuple[str, dict[str, str]]:
    shape = isinstance(tree, list) and len(tree) == 2 and isinstance(tree[0], list) and isinstance(tree[1], dict)
    if not shape or len(tree[0]) != 2 or tree[0][0] != "JWT" or not isinstance(tree[0][1], str):
        raise ConfigError('token_format: token is not [["JWT", text], {name: text, ...}]')
    names = tree[1]
    if len(names) > MAX_DEVICES or not all(
        isinstance(text, str) and re.fullmatch(NAME, name) for name, text in names.items()
    ):
        raise ConfigError(f"token_format: token's devices are not GPU-n or SWITCH-n, or more than {MAX_DEVICES}")
    return tree[0][1], names


def _keys(tree: Any) -> dict[str, ec.EllipticCurvePublicKey]:
    listed = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(listed, list) or not all(isinstance(key, dict) for key in listed):
        raise ConfigError("jwks_format: key set is not an object with a list of keys")
    found: dict[str, ec.EllipticCurvePublicKey] = {}
    for key in listed:
        if key.get("kty") != "EC" or key.get("crv") != "P-384" or key.get("alg", "ES384") != "ES384":
            continue
        kid = key.get("kid")
        if not isinstance(kid, str) or kid in found:
            raise ConfigError("jwks_format: a key has no kid, or one that another has too")
        try:
            x, y = (int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="), "big") for name in ("x", "y"))
            found[kid] = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ConfigError(f"jwks_format: key {kid[:64]!r} is not a point of P-384") from error
    if not found:
        raise ConfigError("jwks_format: key set has no P-384 key")
    return found


def _decode(text: str, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> dict[str, Any] | str:
    """The claims of a JWT that a pinned key signed, or in words why there are none."""
    import jwt

    try:
        key = keys.get(str(jwt.get_unverified_header(text).get("kid")))
        if key is None:
            return "its key is not in the key set"
        # Time, issuer and audience are questions of their own, put to `now` and to the policy.
        only_signature = {"verify_signature": True} | {
            f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
        }
        claims: dict[str, Any] = jwt.decode(text, key, algorithms=["ES384"], options=only_signature)  # type: ignore[arg-type]  # a TypedDict of literal names
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        return type(error).__name__
    return claims


def _digests(overall: Claims) -> dict[str, str] | None:
    """Device to hex SHA-256, of ``{"GPU-0": ["DIGEST", ["SHA-256", hex]]}``; None for any other shape."""
    submods = overall.get("submods")
    if not isinstance(submods, dict):
        return None
    found = {}
    for name, entry in submods.items():
        shape = isinstance(entry, list) and len(entry) == 2 and entry[0] == "DIGEST" and isinstance(entry[1], list)
        if not shape or len(entry[1]) != 2 or entry[1][0] != "SHA-256" or not isinstance(entry[1][1], str):
            return None
        found[name] = entry[1][1]
    return found


def _moment(claims: Claims, name: str) -> datetime | None:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**33:
        return None
    return datetime.fromtimestamp(value, UTC)


def _time(parts: Mapping[str, Claims], now: datetime) -> Check:
    bad = []
    for name, claims in parts.items():
        issued, since, until = (_moment(claims, claim) for claim in ("iat", "nbf", "exp"))
        if issued is None or since is None or until is None:
            bad.append(f"{name} lacks iat, nbf or exp")
        elif not max(issued, since) <= now <= until:
            bad.append(f"{name} is valid {max(issued, since):%Y-%m-%dT%H:%M:%SZ} to {until:%Y-%m-%dT%H:%M:%SZ}")
    said = "; ".join(bad) or "valid"
    return replace(check("token_time", not bad, f"{said}; now is {now:%Y-%m-%dT%H:%M:%SZ}", "genuine"), clock=True)


def _age(overall: Claims, now: datetime, policy: NrasPolicy | None) -> Check:
    issued = _moment(overall, "iat")
    age = None if issued is None else now - issued
    said = "the token has no iat" if age is None else f"issued {age.total_seconds():.0f} s ago"
    fresh = against(
        "token_age",
        said,
        asked(policy, "max_age_s"),
        lambda most: age is not None and timedelta(0) <= age <= timedelta(seconds=most),
    )
    return replace(fresh, clock=True)


def _issuer(parts: Mapping[str, Claims], policy: NrasPolicy | None) -> Check:
    found = sorted({str(claims.get("iss")) for claims in parts.values()})
    return against("token_issuer", ", ".join(found), asked(policy, "issuer"), lambda wanted: found == [wanted])


def _nonce(parts: Mapping[str, Claims], nonce: bytes | None) -> Check:
    if nonce is None:
        return Check("nonce", "not_checked", "no nonce was given: this may be an old token")
    bad = [name for name, claims in parts.items() if str(claims.get("eat_nonce")).lower() != nonce.hex()]
    return check("nonce", not bad, f"{', '.join(bad)}: made for another challenge" if bad else nonce.hex())


def _is(name: str, value: object) -> Callable[[str, Claims], bool]:
    return lambda _, claims: type(claims.get(name)) is type(value) and claims.get(name) == value


def _found(name: str, claims: Claims) -> bool:
    return all(claims.get(each.format(kind=_kind(name))) is True for each in FINDINGS)


def _chains(claims: Claims) -> list[Any]:
    return [value for name, value in claims.items() if name.endswith("-cert-chain")]


def _certificates(_: str, claims: Claims) -> bool:
    chains = _chains(claims)
    return bool(chains) and all(isinstance(c, dict) and c.get("x-nvidia-cert-status") == "valid" for c in chains)


def _good(claims: Claims) -> bool:
    chains = _chains(claims)
    return bool(chains) and all(isinstance(c, dict) and c.get("x-nvidia-cert-ocsp-status") == "good" for c in chains)


def _kind(name: str) -> str:
    return "gpu" if name.startswith("GPU-") else "switch"


def _all(
    code: str,
    parts: Mapping[str, Claims],
    holds: Callable[[str, Claims], bool],
    want: str,
    kind: Kind = "policy",
) -> Check:
    bad = [name for name, claims in parts.items() if not holds(name, claims)]
    return check(code, bool(parts) and not bad, f"{', '.join(bad)}: want {want}" if bad else want, kind)


def _version(name: str, claims: Claims) -> str:
    return str(claims.get("x-nvidia-gpu-vbios-version" if _kind(name) == "gpu" else "x-nvidia-switch-bios-version"))


def _wanted(devices: Mapping[str, Claims], policy: NrasPolicy | None) -> list[Check]:
    gpus = {name: claims for name, claims in devices.items() if _kind(name) == "gpu"}
    good = all(_good(claims) for claims in devices.values())
    revoked = against("ocsp", "good" if good else "not good", asked(policy, "ocsp"), lambda _: good, "revocation")
    arch = [dice.family(str(claims.get("hwmodel")).partition(" ")[0]) for claims in devices.values()]
    driver = [str(claims.get("x-nvidia-gpu-driver-version")) for claims in gpus.values()]
    vbios = [_version(name, claims) for name, claims in devices.items()]
    ueids = [str(claims.get("ueid")) for claims in devices.values()]
    counted = len({str(claims.get("ueid")) for claims in gpus.values()})
    switches = len(set(ueids)) - counted
    return [
        check("duplicate", len(set(ueids)) == len(ueids), f"{len(ueids)} devices, {len(set(ueids))} distinct"),
        revoked,
        _within("arch", arch, asked(policy, "arch")),
        _within("driver_version", driver, asked(policy, "driver_version")),
        _within("vbios_version", vbios, asked(policy, "vbios_version")),
        _within("ueid", ueids, asked(policy, "ueid")),
        against("count", f"{counted} GPUs", asked(policy, "count"), lambda least: counted >= least),
        against("switches", f"{switches} NVSwitches", asked(policy, "switches"), lambda least: switches >= least),
    ]


def _within(code: str, found: Sequence[str], wanted: Any) -> Check:
    return against(code, ", ".join(found) or "none", wanted, lambda allowed: set(found) <= set(allowed))


_CODES: tuple[tuple[str, Kind], ...] = (
    *((code, "genuine") for code in ("token_submods", "token_time", "overall_result", "report_findings")),
    ("certificates", "genuine"),
    ("ocsp", "revocation"),
    *((code, "policy") for code in ("token_age", "token_issuer", "nonce", "measurements", "secure_boot", "debug")),
    *((code, "policy") for code in ("cc_mode", "duplicate", "arch", "driver_version", "vbios_version", "ueid")),
    *((code, "policy") for code in ("count", "switches")),
)
