"""``cordon attest``: verify evidence, explain it, derive a policy from an image, judge a fault record again.

Offline and read-only: evidence, endorsements and time come from files and arguments. Neither nvflare nor torch is
loaded, and each verifier only when its evidence is asked about.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cordon.attest.verdict import printable
from cordon.cli.attest import output
from cordon.errors import ConfigError

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

TDX_OPTIONS = {"mrtd": "mr_td", "rtmr0": "rtmr0", "rtmr1": "rtmr1", "rtmr2": "rtmr2", "rtmr3": "rtmr3"}
"""Option -> field of the policy's section tdx."""

MAX_ERROR = 4000  # characters of an error about a stranger's file, which can quote any amount of it
_CODE = re.compile(r"^([a-z][a-z0-9]*(?:_[a-z0-9]+)*): (.*)$", re.S)


def add_parser(sub: SubParsers) -> None:
    """Add ``attest`` and its commands."""
    attest = sub.add_parser("attest", help="verify and explain evidence of confidential hardware; derive policies")
    commands = attest.add_subparsers(metavar="COMMAND", required=True)
    _add_verify(commands)
    _add_explain(commands)
    _add_policy(commands)
    _add_fault(commands)


def _add_verify(commands: SubParsers) -> None:
    verify = commands.add_parser(
        "verify",
        help="check evidence against the vendor's root and a policy",
        description="Checks one piece of evidence, offline. Exit codes: 0 pass, 1 fail, 2 not checked (no policy, or a "
        "check that the policy asks for could not be made), 3 usage or unreadable input. The policy's own signature is "
        "not checked by this command.",
    )
    kinds = verify.add_subparsers(metavar="KIND", required=True)

    snp = _kind(kinds, "snp", "AMD SEV-SNP attestation report", "snp")
    _file(snp, "report", "attestation report, 1184 bytes, binary or hex text", required=True)
    _add_amd(snp, required=True)
    _report_data(snp)

    for name, title in (("tdx", "Intel TDX quote"), ("sgx", "Intel SGX quote")):
        quote = _kind(kinds, name, title, "quote")
        _file(quote, "quote", "quote, binary or hex text", required=True)
        _file(quote, "collateral", "Intel's collateral (JSON); without it nothing is shown to be genuine")
        if name == "tdx":
            _file(quote, "event-log", "CCEL event log, to replay against the RTMRs")
        _report_data(quote)

    gpu = _kind(kinds, "gpu", "NVIDIA GPU or NVSwitch attestation report", "gpu")
    given = gpu.add_mutually_exclusive_group(required=True)
    _file(given, "evidence", "evidence of one or several devices (JSON)")
    _file(given, "report", "attestation report, binary or hex text (with --chain)")
    _file(gpu, "chain", "the device's certificates: PEM, or base64 of it")
    _nonce(gpu)
    gpu.add_argument("--rim", type=Path, nargs="+", action="extend", default=[], metavar="F", help="RIM files (XML)")

    for name, tee in (("az-snp", "SEV-SNP"), ("az-tdx", "TDX")):
        azure = _kind(kinds, name, f"Azure confidential VM: vTPM-wrapped {tee} report", "azure")
        azure.set_defaults(tee=name.removeprefix("az-"))
        given = azure.add_mutually_exclusive_group(required=True)
        _file(given, "evidence", "all of it in one file (JSON, as confidential-containers writes it)")
        _file(given, "report", "HCL report, as read from the vTPM's NV index")
        if tee == "SEV-SNP":
            _add_amd(azure, required=False)
        else:
            _file(azure, "quote", "TD quote that Azure's host made of the report")
            _file(azure, "collateral", "Intel's collateral (JSON); without it nothing is shown to be genuine")
        _file(azure, "tpm-quote", "quote of the vTPM over the nonce (JSON, or quote.bin)")
        _nonce(azure)
        _report_data(azure)

    for name, title in (("nras", "token of NVIDIA's attestation service"), ("maa", "token of Azure attestation (MAA)")):
        token = _kind(kinds, name, title, name)
        _file(token, "token", "the token, as the service answered it", required=True)
        _file(token, "jwks", "the service's key set (JSON): obtained and kept by you, never taken along", required=True)
        _nonce(token)


def _add_explain(commands: SubParsers) -> None:
    explain = commands.add_parser(
        "explain",
        help="say in words what a piece of evidence proves and what it does not",
        description="Recognises SNP reports, TDX and SGX quotes, GPU reports and evidence, Azure HCL reports, NRAS and "
        "MAA tokens and Cordon's own evidence. It gives no verdict: exit code 0 means that the file could be read.",
    )
    explain.add_argument("evidence", type=Path, metavar="EVIDENCE")
    _add_amd(explain, required=False, more="; of a GPU report: the device's certificates")
    _file(explain, "collateral", "Intel's collateral, for what Intel says of a quote's platform")
    _time(explain)
    explain.set_defaults(run=_told("explain", "explain"), json=False)


def _add_policy(commands: SubParsers) -> None:
    policy = commands.add_parser("policy", help="derive a policy from an image's measurement")
    kinds = policy.add_subparsers(metavar="KIND", required=True)
    about = (
        "Writes BASE with the image's measurement put in, every field named, to --out (never overwritten) or stdout. "
        "Review and sign it next: `cordon sign --key KEY --as attestation FILE`."
    )

    snp = kinds.add_parser("snp", help="MEASUREMENT of an SEV-SNP image", description=about)
    _file(snp, "base", "policy to start from", required=True)
    which = snp.add_mutually_exclusive_group(required=True)
    which.add_argument("--measurement", action="append", metavar="HEX", help="48 bytes; may be given several times")
    _file(which, "ovmf", "firmware image, to compute the measurement from")
    _file(snp, "kernel", "kernel that the firmware measures (direct boot)")
    _file(snp, "initrd", "initial RAM disk")
    snp.add_argument("--append", metavar="STR", help="kernel command line")
    snp.add_argument("--vcpus", type=int, metavar="N", help="number of virtual CPUs")
    snp.add_argument("--vcpu-type", metavar="T", help="QEMU's name of the CPU, such as EPYC-Milan or EPYC-Genoa")
    snp.add_argument("--guest-features", default="0x1", metavar="HEX", help="SEV_FEATURES of the guest (0x1)")
    snp.add_argument("--vmm-type", default="QEMU", choices=["QEMU", "ec2", "gce"], help="who starts the VM (QEMU)")
    _file(snp, "out", "file to write")
    snp.set_defaults(run=_told("policy", "snp"), json=False)

    tdx = kinds.add_parser("tdx", help="MRTD and RTMRs of a TDX image", description=about)
    _file(tdx, "base", "policy to start from", required=True)
    for option, field in TDX_OPTIONS.items():
        tdx.add_argument(f"--{option}", dest=field, action="append", metavar="HEX", required=field == "mr_td")
    _file(tdx, "out", "file to write")
    tdx.set_defaults(run=_told("policy", "tdx"), json=False)


def _add_fault(commands: SubParsers) -> None:
    fault = commands.add_parser(
        "fault",
        help="judge a fault record again: does it prove what it says?",
        description="A verifier keeps such records in its kit's folder quarantine/. The accused's own signed evidence "
        "is judged again by the policy that you know to be in force; what the accuser says of it is not believed. "
        "Exit codes: 0 proven, 1 not proven, 3 usage or unreadable input.",
    )
    fault.add_argument("record", type=Path, metavar="RECORD")
    _file(fault, "study", "study contract, with its signature beside it: it names both parties' keys", required=True)
    _file(
        fault,
        "policy",
        "the accuser's attestation policy, with its signature beside it (the coordinator's: of all hospitals)",
        required=True,
    )
    fault.add_argument(
        "--collateral", type=Path, metavar="DIR", help="folder of CRLs, Intel's collateral and RIM files"
    )
    _time(fault)
    fault.add_argument("--json", action="store_true", help="print one JSON object")
    fault.set_defaults(run=_told("fault", "fault"))


def _kind(kinds: SubParsers, name: str, title: str, command: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=title, description=f"Verifies: {title}.")
    _file(parser, "policy", "attestation policy; without it the verdict is 'not checked' at best")
    _time(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_told("verify", command), kind=name)
    return parser


def _file(parser: argparse._ActionsContainer, name: str, text: str, required: bool = False) -> None:
    parser.add_argument(f"--{name}", type=Path, metavar="F", help=text, required=required)


def _time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", metavar="RFC3339", help="judge as of this time, such as 2026-05-01T12:00:00Z (now)")


def _nonce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nonce", metavar="HEX", help="the challenge that the evidence must answer")


def _report_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report-data", metavar="HEX", help="64 bytes that the evidence must hold, compared if given")


def _add_amd(parser: argparse.ArgumentParser, required: bool, more: str = "") -> None:
    _file(parser, "vek", "the chip's certificate, VCEK or VLEK: PEM or DER", required)
    _file(parser, "chain", f"ASK or ASVK and ARK: PEM; the ARK must be the one in this package{more}")
    _file(parser, "crl", "AMD's certificate revocation list: PEM or DER")
    parser.add_argument(
        "--product", type=str.lower, choices=["milan", "genoa", "turin"], help="needed for reports of version 2"
    )


def _told(module: str, command: str) -> Callable[[argparse.Namespace], int]:
    """A command whose errors start with a stable code; with --json they are on stdout as JSON as well.

    Its module is loaded when it runs: ``cordon --help`` needs none of it.
    """

    def run(args: argparse.Namespace) -> int:
        try:
            return int(getattr(importlib.import_module(f"cordon.cli.attest.{module}"), command)(args))
        except ConfigError as error:
            match = _CODE.match(str(error))
            code, detail = match.groups() if match else ("input_unreadable", str(error))
            detail = printable(" ".join(detail.split()), MAX_ERROR)
            if args.json:
                unread: dict[str, Any] = {"genuine": False, "verdict": "not_checked", "checks": [], "claims": {}}
                output.write(json.dumps({"error": {"code": code, "detail": detail}, **unread}))
            raise ConfigError(f"{code}: {detail}") from error

    return run
