"""``cordon attest explain EVIDENCE``: what a file says, what was checked of it here, and what it can never prove.

For a person. It gives no verdict and needs no policy; the last line is the command that gives one.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from cordon.attest.verdict import Appraisal, printable
from cordon.cli.attest import says
from cordon.cli.attest.input import CERTIFICATE, COLLATERAL, CRL, EVIDENCE, instant, optional, read
from cordon.cli.attest.kinds import claims_of, recognise
from cordon.cli.attest.output import hanging, write
from cordon.errors import ConfigError


@dataclass
class Endorsed:
    """Evidence, and what was given to check it with."""

    data: bytes
    now: datetime
    given: Mapping[str, bytes | None] = field(default_factory=dict)
    product: str | None = None


@dataclass
class Account:
    """What there is to tell: ``facts`` as (label, value), ``appraisal`` if anything could be checked."""

    words: str  # key of says.WORDS
    facts: list[tuple[str, str]]
    appraisal: Appraisal | None
    missing: list[str]
    command: str
    inner: Account | None = None


def explain(args: argparse.Namespace) -> int:
    """``cordon attest explain``; 0 if the file could be read, whatever it says."""
    kind, data, tree = recognise(read(args.evidence, EVIDENCE))
    given = {
        "vek": optional(args.vek, CERTIFICATE),
        "chain": optional(args.chain, CERTIFICATE),
        "crl": optional(args.crl, CRL),
        "collateral": optional(args.collateral, COLLATERAL),
    }
    product = args.product.capitalize() if args.product else None
    account = _ACCOUNTS[kind](Endorsed(data, instant(args.at), given, product), tree)
    write("\n".join(_page(args.evidence, account)))
    return 0


def _page(path: Path, account: Account) -> Iterable[str]:
    words = says.WORDS[account.words]
    yield printable(f"{path}: {words.title}")
    yield from _facts(account)
    yield from _checked(account)
    if account.inner is not None:
        yield f"\nInside it: {says.WORDS[account.inner.words].title}"
        yield from _facts(account.inner)
        yield from _checked(account.inner)
        words = says.WORDS[account.inner.words]  # what the statement is worth depends on the TEE that made the report
    yield from _listed("Once all of that is verified, it proves", words.proves)
    yield from _listed("It never proves", words.never)
    yield "\nFor a verdict:"
    yield f"  {printable(account.command.replace('EVIDENCE', shlex.quote(str(path))))}"


def _facts(account: Account) -> Iterable[str]:
    yield "\nIt says (true only as far as it is checked below)"
    wide = max(len(label) for label, _ in account.facts)
    for label, value in account.facts:
        yield from hanging(f"  {label:<{wide}}  ", value)


def _checked(account: Account) -> Iterable[str]:
    """Checks of the vendor's signatures, and of the one thing that needs no policy: debug."""
    found = account.appraisal.checks if account.appraisal is not None else ()
    asked = [each for each in found if each.kind != "policy" or each.code == "debug"]
    passed = [each.code for each in asked if each.result == "pass"]
    failed = [f"{each.code}: {each.detail}" for each in asked if each.result == "fail"]
    if passed:
        yield from _listed("Checked here, and true", [", ".join(passed)])
    if failed:
        yield from _listed("Checked here, and FALSE: don't trust it", failed)
    unknown = [f"{each.code}: {each.detail}" for each in asked if each.result == "not_checked"]
    yield from _listed("NOT checked here", [*unknown, *account.missing])


def _listed(title: str, lines: Iterable[str]) -> Iterable[str]:
    yield f"\n{title}"
    for line in lines:
        yield from hanging("  - ", line)


NO_POLICY = "whether it is what you want: no policy was given"


def _snp(evidence: Endorsed, _: Any) -> Account:
    from cordon.attest import snp

    report = snp.Report.parse(evidence.data)
    vek = evidence.given.get("vek")
    command = "cordon attest verify snp --report EVIDENCE --vek VCEK --policy POLICY"
    if vek is None:
        missing = ["who signed it: give the chip's certificate (--vek), from AMD's KDS or from the host", NO_POLICY]
        return Account("snp", says.snp(report, evidence.product), None, missing, command)
    chain, crl = evidence.given.get("chain"), evidence.given.get("crl")
    appraisal = snp.verify(evidence.data, vek=vek, chain=chain, crl=crl, now=evidence.now, product=evidence.product)
    return Account("snp", says.snp(report, appraisal.claims["product"]), appraisal, [NO_POLICY], command)


def _quote(kind: str) -> Callable[[Endorsed, Any], Account]:
    def account(evidence: Endorsed, _: Any) -> Account:
        from cordon.attest import sgx, tdx

        verifier = {"tdx": tdx, "sgx": sgx}[kind]
        appraisal = verifier.verify(evidence.data, collateral=evidence.given.get("collateral"), now=evidence.now)
        command = f"cordon attest verify {kind} --quote EVIDENCE --collateral COLLATERAL --policy POLICY"
        return Account(kind, says.quote(appraisal.claims), appraisal, [NO_POLICY], command)

    return account


def _gpu_report(evidence: Endorsed, _: Any) -> Account:
    from cordon.attest import nvgpu
    from cordon.attest.nvgpu import spdm

    facts = says.gpu(spdm.parse(evidence.data))
    chain = evidence.given.get("chain")
    command = "cordon attest verify gpu --report EVIDENCE --chain CHAIN --nonce NONCE --rim RIM... --policy POLICY"
    if chain is None:
        missing = ["who signed it: give the device's certificates (--chain)", NO_POLICY]
        return Account("gpu", facts, None, missing, command)
    return Account("gpu", facts, nvgpu.verify(evidence.data, chain, now=evidence.now), [NO_POLICY], command)


def _gpu_evidence(evidence: Endorsed, _: Any) -> Account:
    from cordon.attest import nvgpu
    from cordon.attest.nvgpu import spdm

    facts, appraisals = [], []
    for number, device in enumerate(nvgpu.read_evidence(evidence.data)):
        facts += [(f"{number}: {label}", value) for label, value in says.gpu(spdm.parse(device["report"]))]
        appraisals.append(nvgpu.verify(device["report"], device["chain"], now=evidence.now))
    command = "cordon attest verify gpu --evidence EVIDENCE --nonce NONCE --rim RIM... --policy POLICY"
    return Account("gpu", facts, _together(appraisals), [NO_POLICY], command)


def _together(appraisals: list[Appraisal]) -> Appraisal:
    """One appraisal of several devices, for reading: each check names its device."""
    if len(appraisals) == 1:
        return appraisals[0]
    checks = [
        replace(check, code=f"{number}: {check.code}")
        for number, each in enumerate(appraisals)
        for check in each.checks
    ]
    return Appraisal("nvgpu", tuple(checks), {}, False)


def _hcl(evidence: Endorsed, _: Any) -> Account:
    from cordon.attest.azure import hcl

    parsed = hcl.parse(evidence.data)
    tee = next((name for name, number in hcl.REPORT_TYPE.items() if number == parsed.report_type), None)
    if tee is None:
        raise ConfigError(f"hcl_format: report type {parsed.report_type} is neither SNP nor TDX")
    return _azure(evidence, tee, None, None)


def _azure_evidence(evidence: Endorsed, _: Any) -> Account:
    from cordon.attest import azure

    found = azure.read_evidence(evidence.data)
    parts = {"vek": found.vek, "quote": found.quote}
    whole = Endorsed(found.hcl_report, evidence.now, {**evidence.given, **parts}, evidence.product)
    return _azure(whole, found.tee, found.tpm_quote, "--evidence EVIDENCE")


def _azure(evidence: Endorsed, tee: Any, tpm_quote: Any, option: str | None) -> Account:
    from cordon.attest import azure, snp

    data = evidence.data
    vek, chain, crl, quote, collateral = (
        evidence.given.get(name) for name in ("vek", "chain", "crl", "quote", "collateral")
    )
    appraisal = azure.verify(
        data,
        tee=tee,
        vek=vek,
        chain=chain,
        crl=crl,
        quote=quote,
        collateral=collateral,
        tpm_quote=tpm_quote,
        now=evidence.now,
    )
    option = option or f"--report EVIDENCE {'--vek VCEK' if tee == 'snp' else '--quote QUOTE'} --tpm-quote QUOTE"
    command = f"cordon attest verify az-{tee} {option} --nonce NONCE --policy POLICY"
    facts = says.azure(appraisal.claims, tee)
    if tee == "snp":
        inside = says.snp(snp.Report.parse(azure.hardware_report(data)), appraisal.claims.get("product"))
        facts += [(f"inside: {label}", value) for label, value in inside]
    missing = [NO_POLICY] if tpm_quote is not None else ["what the vTPM says: no quote of it (--tpm-quote)", NO_POLICY]
    return Account("azure", facts, appraisal, missing, command)


UNSIGNED = "who signed it: that needs the service's key set (--jwks), obtained and kept by you"


def _maa(evidence: Endorsed, _: Any) -> Account:
    facts = says.token(claims_of(evidence.data))
    command = "cordon attest verify maa --token EVIDENCE --jwks KEYS --nonce NONCE --policy POLICY"
    return Account("maa", facts, None, [UNSIGNED, NO_POLICY], command)


def _nras(evidence: Endorsed, tree: Any) -> Account:
    try:
        overall, devices = msgspec.convert(tree, tuple[tuple[str, str], dict[str, str]])
    except msgspec.ValidationError as error:
        raise ConfigError(f"token_format: not the answer of NRAS: {error}") from error
    facts = [("overall: " + label, value) for label, value in says.token(claims_of(overall[1].encode()))]
    for name, token in sorted(devices.items()):
        facts += [(f"{name}: {label}", value) for label, value in says.token(claims_of(token.encode()))]
    command = "cordon attest verify nras --token EVIDENCE --jwks KEYS --nonce NONCE --policy POLICY"
    return Account("nras", facts, None, [UNSIGNED, NO_POLICY], command)


def _cordon(evidence: Endorsed, tree: Any) -> Account:
    from cordon import signing
    from cordon.attest.appraise import EVIDENCE_TYPE, Evidence
    from cordon.errors import SignatureError

    if tree["payloadType"] != EVIDENCE_TYPE:
        raise ConfigError(f"evidence_version: {tree['payloadType']}, this version reads {EVIDENCE_TYPE}")
    try:
        body = msgspec.convert(signing.unverified_body(tree), Evidence, strict=True)
    except (SignatureError, msgspec.ValidationError) as error:
        raise ConfigError(f"evidence_format: {error}") from error
    missing = [
        "the prover's signature, and that the report covers this statement: both need its mTLS key (study contract)",
        "that the nonce is one that you issued, and only just",
    ]
    command = "see attestation.jsonl of the verifier that issued the nonce: this file alone gives none"
    return Account("cordon", says.statement(body), None, missing, command, _inner(evidence, body))


def _inner(evidence: Endorsed, body: Any) -> Account:
    inside = Endorsed(body.report, evidence.now, {**evidence.given, **body.endorsements}, evidence.product)
    if body.type == "software":
        facts = says.software(body.report)
        return Account("software", facts, None, ["the report's own signature: it would prove no more"], says.SOFTWARE)
    if body.type == "az-snp" or body.type == "az-tdx":
        from cordon.attest import azure

        quote = body.endorsements.get("tpm_quote")
        return _azure(inside, body.type[3:], None if quote is None else azure.read_tpm_quote(quote), None)
    if body.type not in ("snp", "tdx", "sgx"):
        raise ConfigError(f"evidence_format: evidence of type {body.type!r}")
    return _ACCOUNTS[body.type](inside, None)


_ACCOUNTS: dict[str, Callable[[Endorsed, Any], Account]] = {
    "snp": _snp,
    "tdx": _quote("tdx"),
    "sgx": _quote("sgx"),
    "gpu-report": _gpu_report,
    "gpu-evidence": _gpu_evidence,
    "hcl": _hcl,
    "azure-evidence": _azure_evidence,
    "maa": _maa,
    "nras": _nras,
    "cordon": _cordon,
}
