"""The commands ``cordon attest verify KIND``: files in, one verdict out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from cordon.attest.verdict import Appraisal, Check, against, check
from cordon.cli.attest.input import (
    CERTIFICATE,
    COLLATERAL,
    CRL,
    EVENT_LOG,
    EVIDENCE,
    MAX_RIMS,
    REPORT,
    RIM,
    TOKEN,
    binary,
    hex_bytes,
    instant,
    optional,
    policy_file,
    read,
)
from cordon.cli.attest.output import emit
from cordon.errors import ConfigError

if TYPE_CHECKING:
    from cordon.attest.azure import TpmQuote
    from cordon.attest.nvgpu.policy import GpuPolicy
    from cordon.attest.policy import AttestationPolicy


def snp(args: argparse.Namespace) -> int:
    """``cordon attest verify snp``."""
    from cordon.attest import snp as verifier

    policy = _policy(args)
    appraisal = verifier.verify(
        binary(read(args.report, REPORT)),
        vek=read(args.vek, CERTIFICATE),
        chain=optional(args.chain, CERTIFICATE),
        crl=optional(args.crl, CRL),
        now=instant(args.at),
        policy=_section(policy, "snp"),
        product=args.product.capitalize() if args.product else None,
        report_data=hex_bytes(args.report_data, "--report-data", 64),
    )
    return emit(args, [_accepted("snp", appraisal, policy)], policy)


def quote(args: argparse.Namespace) -> int:
    """``cordon attest verify tdx`` and ``sgx``."""
    from cordon.attest import sgx, tdx

    policy = _policy(args)
    given: dict[str, Any] = {
        "collateral": optional(args.collateral, COLLATERAL),
        "now": instant(args.at),
        "policy": _section(policy, args.kind),
        "report_data": hex_bytes(args.report_data, "--report-data", 64),
    }
    data = binary(read(args.quote, REPORT))
    if args.kind == "tdx":
        appraisal = tdx.verify(data, event_log=optional(args.event_log, EVENT_LOG), **given)
    else:
        appraisal = sgx.verify(data, **given)
    return emit(args, [_accepted(args.kind, appraisal, policy)], policy)


def gpu(args: argparse.Namespace) -> int:
    """``cordon attest verify gpu``; of several devices each is judged, and all must pass."""
    from cordon.attest import nvgpu
    from cordon.attest.nvgpu import device

    if (args.report is None) != (args.chain is None):
        raise ConfigError("usage: --report and --chain go together, and --evidence holds both")
    if len(args.rim) > MAX_RIMS:
        raise ConfigError(f"usage: --rim: {len(args.rim)} files, at most {MAX_RIMS}")
    policy, nonce, now = _policy(args), hex_bytes(args.nonce, "--nonce"), instant(args.at)
    if args.report is not None:
        devices = [(binary(read(args.report, REPORT)), read(args.chain, CERTIFICATE))]
    else:
        devices = [(each["report"], each["chain"]) for each in nvgpu.read_evidence(read(args.evidence, EVIDENCE))]
    rims = tuple(read(path, RIM) for path in args.rim)
    section = _section(policy, "gpu")
    anchors = device.anchors(None)
    known, shared = device.read_rims(rims, anchors.rim, now), len(devices) > 1
    appraisals = [
        device.appraise(report, chain, nonce, known, now, section, anchors.device, shared=shared)
        for report, chain in devices
    ]
    first = appraisals[0]
    appraisals[0] = replace(first, checks=(*first.checks, *_machine(appraisals, section)))
    appraisals = [_accepted("gpu", appraisal, policy) for appraisal in appraisals]
    return emit(args, appraisals, policy)


def _machine(appraisals: Sequence[Appraisal], policy: GpuPolicy | None) -> Iterator[Check]:
    """What is asked of all devices together: each is another one, and there are as many as the policy wants."""
    found = {each.claims["device_id"]: each.claims["arch"] == "ls10" for each in appraisals if each.genuine}
    if len(appraisals) > 1:
        shown = len({each.claims["device_id"] for each in appraisals})
        yield check("duplicate", shown == len(appraisals), f"{len(appraisals)} reports of {shown} devices")
    if policy is not None:
        for code, what, switch in (("count", "GPUs", False), ("switches", "NVSwitches", True)):
            number = list(found.values()).count(switch)
            wanted: int | Literal["any"] = getattr(policy, code)
            yield against(code, f"{number} genuine {what}", wanted, number.__ge__)


def azure(args: argparse.Namespace) -> int:
    """``cordon attest verify az-snp`` and ``az-tdx``."""
    from cordon.attest import azure as verifier

    policy = _policy(args)
    report, vek, quote, tpm_quote = _azure_parts(args)
    appraisal = verifier.verify(
        report,
        tee=args.tee,
        vek=vek,
        quote=quote,
        chain=optional(getattr(args, "chain", None), CERTIFICATE),
        crl=optional(getattr(args, "crl", None), CRL),
        collateral=optional(getattr(args, "collateral", None), COLLATERAL),
        tpm_quote=tpm_quote,
        nonce=hex_bytes(args.nonce, "--nonce"),
        now=instant(args.at),
        hardware_policy=_section(policy, args.tee),
        policy=_section(policy, "azure"),
        report_data=hex_bytes(args.report_data, "--report-data", 64),
    )
    return emit(args, [_accepted(args.kind, appraisal, policy)], policy)


def _azure_parts(args: argparse.Namespace) -> tuple[bytes, bytes | None, bytes | None, TpmQuote | None]:
    """(HCL report, VEK, TD quote, vTPM quote), from one file or from one each."""
    from cordon.attest import azure as verifier

    hardware = {"snp": "vek", "tdx": "quote"}[args.tee]
    if args.evidence is None:
        endorsement, tpm = optional(getattr(args, hardware), REPORT), optional(args.tpm_quote, REPORT)
        tpm_quote = None if tpm is None else verifier.read_tpm_quote(tpm)
        vek, quote = (endorsement, None) if args.tee == "snp" else (None, endorsement)
        return read(args.report, REPORT), vek, quote, tpm_quote
    if getattr(args, hardware) is not None or args.tpm_quote is not None:
        raise ConfigError(f"usage: --evidence holds what --{hardware} and --tpm-quote name")
    found = verifier.read_evidence(read(args.evidence, EVIDENCE))
    if found.tee != args.tee:
        raise ConfigError(f"evidence_format: {args.evidence}: of az-{found.tee}, want {args.kind}")
    return found.hcl_report, found.vek, found.quote, found.tpm_quote


def nras(args: argparse.Namespace) -> int:
    """``cordon attest verify nras``; its policy is of the schema ``NrasPolicy``."""
    from cordon.attest.nvgpu import nras as verifier
    from cordon.attest.nvgpu.policy import NrasPolicy

    policy = None if args.policy is None else policy_file(args.policy, NrasPolicy)
    appraisal = verifier.verify(
        read(args.token, TOKEN),
        jwks=read(args.jwks, TOKEN),
        nonce=hex_bytes(args.nonce, "--nonce"),
        now=instant(args.at),
        policy=policy,
    )
    return emit(args, [appraisal], policy)


def maa(args: argparse.Namespace) -> int:
    """``cordon attest verify maa``; its policy is of the schema ``MaaPolicy``."""
    from cordon.attest.azure import maa as verifier
    from cordon.attest.azure.policy import MaaPolicy

    policy = None if args.policy is None else policy_file(args.policy, MaaPolicy)
    appraisal = verifier.verify(
        read(args.token, TOKEN).strip(),  # an editor ends a file with a line break
        jwks=read(args.jwks, TOKEN),
        nonce=hex_bytes(args.nonce, "--nonce"),
        now=instant(args.at),
        policy=policy,
    )
    return emit(args, [appraisal], policy)


def _policy(args: argparse.Namespace) -> AttestationPolicy | None:
    if args.policy is None:
        return None
    from cordon.attest.policy import AttestationPolicy

    policy: AttestationPolicy = policy_file(args.policy, AttestationPolicy)
    return policy


def _section(policy: AttestationPolicy | None, name: str) -> Any:
    """A policy's section; None, as without a policy, if it has none: ``evidence_type`` says why."""
    section = None if policy is None else getattr(policy, name)
    return None if section in ("none", "any") else section


def _accepted(kind: str, appraisal: Appraisal, policy: AttestationPolicy | None) -> Appraisal:
    """``appraisal``, and whether the policy wants evidence of this kind at all."""
    if policy is None:
        return appraisal
    return replace(appraisal, checks=(_evidence_type(kind, policy), *appraisal.checks))


def _evidence_type(kind: str, policy: AttestationPolicy) -> Check:
    code = "evidence_type"
    if kind != "gpu":
        return check(code, kind in policy.evidence, f"{kind}, the policy accepts {', '.join(policy.evidence)}")
    if policy.gpu == "any":
        return Check(code, "not_checked", "the policy does not look at GPU evidence (any)", waived=True)
    return check(
        code, policy.gpu != "none", f"the policy {'wants no' if policy.gpu == 'none' else 'wants'} GPU evidence"
    )
