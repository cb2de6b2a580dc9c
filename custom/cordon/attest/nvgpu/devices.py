"""Judging all devices of one machine together: one challenge, no device twice, as many as wanted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from cordon.attest.nvgpu import spdm
from cordon.attest.nvgpu.device import Roots, anchors, appraise, read_rims
from cordon.attest.nvgpu.evidence import MAX_DEVICES
from cordon.attest.nvgpu.policy import GpuPolicy, asked
from cordon.attest.verdict import Check, against, check, utc
from cordon.errors import ConfigError

FIELDS = ("uuid", "arch", "report", "chain")
UUID = r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,95}"


def verify_devices(
    evidence: Sequence[Mapping[str, Any]],
    nonce: bytes,
    *,
    rims: Sequence[bytes] = (),
    now: datetime,
    policy: GpuPolicy | None = None,
    roots: Roots | None = None,
) -> tuple[Check, ...]:
    """The checks on every device of a machine, coded ``gpu_<code>``, each detail headed by the device's uuid.

    What cannot be parsed is a failed check here, as a peer chose it; a RIM file that cannot be is the verifier's own
    (ConfigError). The driver's uuid stands in no certificate, so it is a label: devices are told apart by the identity
    certificate.

    Args:
        evidence: per device ``uuid`` and ``arch`` (text), ``report`` and ``chain`` (base64 text).
        nonce: the 32 bytes that every report has to answer.
        rims: signed reference measurements for all of them; each device is compared with those of its chip.
        roots: trust anchors; for a test PKI only: no command and no kit sets them.
    """
    if len(nonce) != spdm.NONCE:
        raise ConfigError(f"nonce_format: nonce has {len(nonce)} bytes, want {spdm.NONCE}")
    trusted, now = anchors(roots), utc(now)
    known = read_rims(rims, trusted.rim, now)
    if len(evidence) > MAX_DEVICES:
        return (check("gpu_evidence_format", False, f"{len(evidence)} devices, at most {MAX_DEVICES} are looked at"),)

    checks: list[Check] = []
    uuids: Counter[str] = Counter()
    families: dict[str, str] = {}  # device_id of a genuine device -> arch
    late = False  # whether a device is not counted by the clock alone
    for position, device in enumerate(evidence):
        named = isinstance(device, Mapping) and all(isinstance(device.get(name), str) for name in FIELDS)
        if not named or not re.fullmatch(UUID, device["uuid"]):
            detail = f"device {position}: want text in {', '.join(FIELDS)}"
            checks.append(check("gpu_evidence_format", False, detail))
            continue
        uuid = device["uuid"]
        uuids[uuid] += 1
        try:
            appraisal = appraise(
                device["report"], device["chain"], nonce, known, now, policy, trusted.device, shared=True
            )
        except ConfigError as error:
            code, _, detail = str(error).partition(": ")
            checks.append(check(f"gpu_{code}", False, f"{uuid}: {detail}", "genuine"))
            continue
        checks += [replace(each, code=f"gpu_{each.code}", detail=f"{uuid}: {each.detail}") for each in appraisal.checks]
        arch, identity = appraisal.claims["arch"], appraisal.claims["device_id"]
        if device["arch"].lower() != arch:
            detail = f"{uuid}: called {device['arch'][:32]!r}, its certificate says {arch}"
            checks.append(check("gpu_arch_named", False, detail))
        if identity in families:
            checks.append(check("gpu_duplicate", False, f"{uuid}: device {identity} is shown twice"))
        elif appraisal.genuine:
            families[identity] = arch
        else:
            amiss = [each for each in appraisal.checks if each.kind != "policy" and each.result == "fail"]
            late = late or all(each.clock for each in amiss)

    checks += [
        check("gpu_duplicate", False, f"{uuid}: shown {times} times") for uuid, times in uuids.items() if times > 1
    ]
    switches = sum(1 for arch in families.values() if arch == "ls10")
    checks += [
        replace(_enough("gpu_count", len(families) - switches, "GPUs", asked(policy, "count")), clock=late),
        replace(_enough("gpu_switches", switches, "NVSwitches", asked(policy, "switches")), clock=late),
    ]
    return tuple(checks)


def _enough(code: str, found: int, what: str, wanted: Any) -> Check:
    return against(code, f"{found} genuine {what}", wanted, lambda least: found >= least)
