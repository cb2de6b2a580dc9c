"""Judging one device: is this NVIDIA's hardware, does it answer this challenge, is it what the policy wants."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cordon.attest import roots as embedded
from cordon.attest.nvgpu import chain, dice, rim, spdm
from cordon.attest.nvgpu.evidence import decode_report
from cordon.attest.nvgpu.policy import GpuPolicy, asked
from cordon.attest.verdict import Appraisal, Check, check, listed, utc
from cordon.errors import ConfigError

MSR_NVDEC0 = 35  # RIM index of the video decoder's measurement: unset while the decoder is switched off
CC_MODE = "a report does not state CC mode or developer tools: the measured guest image has to ask the driver"


@dataclass(frozen=True)
class Roots:
    """Trust anchors; for a test PKI only: no command and no kit sets them."""

    device: x509.Certificate
    rim: x509.Certificate


def anchors(roots: Roots | None) -> Roots:
    """``roots``, or NVIDIA's that are embedded in the package."""
    return roots or Roots(embedded.load("nvidia_device_root"), embedded.load("nvidia_rim_root"))


def verify(
    report: bytes,
    chain: bytes,
    *,
    nonce: bytes | None = None,
    rims: Sequence[bytes] = (),
    now: datetime,
    policy: GpuPolicy | None = None,
    roots: Roots | None = None,
) -> Appraisal:
    """The verdict on one device's attestation report.

    Args:
        report: SPDM request and response, 37 + n bytes; hexadecimal and base64 text are read as well.
        chain: the device's certificates, leaf first, PEM or base64 of PEM; the root may be left out.
        nonce: the 32 bytes of the challenge; None: freshness is not checked.
        rims: signed reference measurements (XML) of this device's driver and VBIOS.
        now: timezone-aware.
        roots: trust anchors; for a test PKI only: no command and no kit sets them.

    Raises:
        ConfigError: something cannot be parsed; starts with report_format, report_version, chain_format, rim_format or
            nonce_format, or now.
    """
    trusted = anchors(roots)
    now = utc(now)
    return appraise(report, chain, nonce, read_rims(rims, trusted.rim, now), now, policy, trusted.device)


def read_rims(rims: Sequence[bytes], root: x509.Certificate, now: datetime) -> list[rim.Rim]:
    """Every RIM file, judged by itself."""
    if len(rims) > rim.MAX_RIMS:
        raise ConfigError(f"rim_format: {len(rims)} RIM files, at most {rim.MAX_RIMS} are read")
    return [rim.read(data, root, now) for data in rims]


def appraise(
    report: bytes | str,
    certificates: bytes | str,
    nonce: bytes | None,
    rims: Sequence[rim.Rim],
    now: datetime,
    policy: GpuPolicy | None,
    root: x509.Certificate,
    shared: bool = False,
) -> Appraisal:
    """As ``verify``, with RIM files that were read already; ``shared``: some of them may be other devices'."""
    # 1. Parse: what cannot be read has no verdict.
    if nonce is not None and len(nonce) != spdm.NONCE:
        raise ConfigError(f"nonce_format: nonce has {len(nonce)} bytes, want {spdm.NONCE}")
    parsed = spdm.parse(decode_report(report))
    links = chain.decode(certificates)
    leaf = links[0]
    fwids = dice.fwids(leaf)

    checks = [
        # 2. Genuine: NVIDIA's root certified the key that signed exactly these bytes, for this firmware.
        _request(parsed),
        _chain(links, root),
        chain.at("report_time", "the device's chain", links, root, now),
        _signature(parsed, leaf),
        _fwid(parsed, leaf, fwids, policy),
        # 3. Revocation needs the network.
        Check("ocsp", "not_checked", "no OCSP response was given", "revocation", _waived(asked(policy, "ocsp"))),
        # 4. Fresh: an answer to this challenge.
        _nonce(parsed, nonce),
        # 5. What the policy wants.
        listed("arch", dice.arch(leaf), asked(policy, "arch")),
        _stated("driver_version", parsed.driver_version, leaf, asked(policy, "driver_version")),
        _stated("vbios_version", parsed.vbios_version, leaf, asked(policy, "vbios_version")),
        _stated("mode", parsed.mode, leaf, asked(policy, "mode")),
        listed("device_id", device_id(links), asked(policy, "device_id")),
        Check("cc_mode", "not_checked", CC_MODE, waived=_waived(asked(policy, "cc_mode"))),
    ]
    # 6. Measurements are those that NVIDIA signed for this driver and this VBIOS.
    checks += _references(parsed, leaf, _own(parsed, leaf, rims) if shared else rims, policy)
    return Appraisal("nvgpu", tuple(checks), _claims(parsed, links, fwids), policy is not None)


def device_id(links: Sequence[chain.Link]) -> str:
    """Hex SHA-256 of the device's identity certificate (second of the chain): the leaf changes with the firmware."""
    return links[min(1, len(links) - 1)].digest


def _request(report: spdm.Report) -> Check:
    """Asked for a signed answer with all measurements, and answered from the same slot with a nonce of its own."""
    whole = report.attributes == 1 and report.operation == 0xFF and report.parameters == (0, report.slot)
    said = f"attributes {report.attributes:#04x}, measurements {report.operation:#04x}, slot {report.slot}"
    want = f"want 0x01, 0xff, the answer (0, {report.slot}) and a nonce; the answer is {report.parameters}"
    ok = whole and any(report.response_nonce)
    return check("report_request", ok, said if ok else f"{said}: {want}", "genuine")


def _chain(links: Sequence[chain.Link], root: x509.Certificate) -> Check:
    faults = chain.problems(links, root)
    if len(links) not in (4, 5):
        faults.append(f"chain has {len(links)} certificates, want 4 or 5")
    return check(
        "report_chain", not faults, "; ".join(faults) or f"{links[0].name} leads to the pinned root", "genuine"
    )


def _signature(report: spdm.Report, leaf: chain.Link) -> Check:
    half = spdm.SIGNATURE // 2
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
    holds = leaf.key is not None
    try:
        if leaf.key is not None:
            leaf.key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        holds = False
    words = "signed" if holds else "not signed"
    return check("report_signature", holds, f"{words} by the leaf's P-384 key over request and response", "genuine")


def _fwid(report: spdm.Report, leaf: chain.Link, fwids: Sequence[bytes], policy: GpuPolicy | None) -> Check:
    stated = report.opaque.get(spdm.FWID)
    if stated is None:  # drivers of 2023 do not state it; the signature covers the absence
        return _stated("fwid", None, leaf, asked(policy, "fwid"))
    certified = ", ".join(each.hex() for each in fwids) or "none"
    same = stated in fwids
    return check("fwid", same, f"report states {stated.hex()}, the key was certified for {certified}", "genuine")


def _nonce(report: spdm.Report, nonce: bytes | None) -> Check:
    if nonce is None:
        return Check("nonce", "not_checked", "no nonce was given: this may be an old report")
    same = hmac.compare_digest(report.request_nonce, nonce)
    want = "" if same else f", want {nonce.hex()}"
    return check("nonce", same, f"report answers {report.request_nonce.hex()}{want}")


def _stated(code: str, value: str | None, leaf: chain.Link, wanted: Any) -> Check:
    """A value that old drivers leave out; a switch has none but its VBIOS version, and is not asked for more."""
    if value is None and dice.arch(leaf) == "ls10" and code != "vbios_version":
        return Check(code, "not_checked", "a switch does not state it", waived=True)
    if value is None:
        return Check(code, "not_checked", "the report does not state it", waived=_waived(wanted))
    return listed(code, value, wanted)


def _references(
    report: spdm.Report, leaf: chain.Link, rims: Sequence[rim.Rim], policy: GpuPolicy | None
) -> list[Check]:
    waived = _waived(asked(policy, "rim"))
    checks: list[Check] = []
    golden: dict[str, Mapping[int, tuple[bytes, ...]]] = {}
    for kind, stated in (("driver", report.driver_version), ("vbios", report.vbios_version)):
        given = [each for each in rims if each.kind == kind]
        code = f"rim_{kind}"
        if not given:
            none = kind == "driver" and dice.arch(leaf) == "ls10"
            detail = "a switch has no driver RIM" if none else f"no {kind} RIM was given"
            checks.append(Check(code, "not_checked", detail, waived=none or waived))
            continue
        faults = [fault for each in given for fault in (*each.faults, *_foreign(each, leaf, stated))]
        if len(given) > 1:
            faults.append(f"{len(given)} {kind} RIMs were given, want one")
        late = [each.window for each in given if each.window.result != "pass"]
        said = f"RIM of {given[0].product} {given[0].version}"
        detail = "; ".join([said, *faults, *(window.detail for window in late)])
        result = check(code, not faults and not late, detail)
        checks.append(replace(result, clock=not faults))
        if len(given) == 1 and given[0].golden is not None and not _foreign(given[0], leaf, stated):
            golden[kind] = given[0].golden
    if not golden:
        detail = "no RIM for this driver or VBIOS whose signature holds was given"
        return [*checks, Check("rim_measurements", "not_checked", detail, waived=waived and not rims)]
    return [*checks, _measurements(report, golden)]


def _own(report: spdm.Report, leaf: chain.Link, rims: Sequence[rim.Rim]) -> list[rim.Rim]:
    """Of a machine's RIM files those of this chip, and of these the ones for its versions if there are any."""
    own: list[rim.Rim] = []
    for kind, stated in (("driver", report.driver_version), ("vbios", report.vbios_version)):
        of_chip = [each for each in rims if each.kind == kind and each.product == _product(leaf)]
        own += [each for each in of_chip if each.version == stated] or of_chip
    return own


def _product(leaf: chain.Link) -> str:
    """The chip as RIM files spell it."""
    return dice.chip(leaf).replace("LS_10", "LS10")


def _foreign(given: rim.Rim, leaf: chain.Link, stated: str | None) -> list[str]:
    """Why a RIM is not for this device."""
    faults = []
    if given.product != _product(leaf):
        faults.append(f"RIM is for {given.product}, the device is a {_product(leaf)}")
    if given.version != stated:
        faults.append(f"RIM is for {given.kind} {given.version}, the report states {stated}")
    return faults


def _measurements(report: spdm.Report, golden: Mapping[str, Mapping[int, tuple[bytes, ...]]]) -> Check:
    """RIM index i is SPDM index i + 1. A measurement that is wanted and absent differs."""
    twice = set.intersection(*(set(indexes) for indexes in golden.values())) if len(golden) > 1 else set()
    off = report.opaque.get(spdm.NVDEC0_STATUS) == bytes([spdm.DISABLED])
    wanted = [
        (kind, index, digests)
        for kind, indexes in sorted(golden.items())
        for index, digests in sorted(indexes.items())
        if not (off and index == MSR_NVDEC0)
    ]
    differ = [f"{kind} {i}" for kind, i, digests in wanted if report.measurements.get(i + 1) not in digests]
    faults = [f"index {index} is in both RIMs" for index in sorted(twice)]
    if differ:
        faults.append(f"not as NVIDIA signed them: {', '.join(differ)}")
    said = f"{len(wanted)} of {len(report.measurements)} measurements have a reference ({', '.join(sorted(golden))})"
    return check("rim_measurements", not faults, "; ".join([said, *faults]))


def _waived(wanted: object) -> bool:
    return wanted == "any"


def _claims(report: spdm.Report, links: Sequence[chain.Link], fwids: Sequence[bytes]) -> dict[str, Any]:
    leaf = links[0]
    return {
        "arch": dice.arch(leaf),
        "chip": dice.chip(leaf),
        "serial": dice.serial(leaf),
        "device_id": device_id(links),
        "ueid": str(leaf.certificate.serial_number),
        "driver_version": report.driver_version,
        "vbios_version": report.vbios_version,
        "mode": report.mode,
        "board": report.board,
        "fwid": fwids[0].hex() if fwids else None,
        "nonce": report.request_nonce.hex(),
        "measurements": {str(index): value.hex() for index, value in sorted(report.measurements.items())},
        "opaque": {str(number): value.hex() for number, value in sorted(report.opaque.items())},
    }
