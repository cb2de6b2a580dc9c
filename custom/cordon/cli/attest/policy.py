"""``cordon attest policy``: a policy for one image, from its measurement.

The measurement of an SEV-SNP image is computed from firmware, kernel, initial RAM disk and command line, as the
processor does at launch (AMD 56860, section 8.17), by ``sev-snp-measure``. A TDX image's values are given.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.attest.verdict import printable
from cordon.cli.attest import TDX_OPTIONS
from cordon.cli.attest.input import MIB, hex_bytes, policy_file
from cordon.cli.attest.output import write
from cordon.errors import ConfigError

MAX_VCPUS = 4096
MAX_FIRMWARE, MAX_KERNEL, MAX_INITRD = 64 * MIB, 256 * MIB, 2048 * MIB
MIN_FILE = 1  # byte: an empty kernel or RAM disk is a build that failed
DIGEST = 48  # bytes of SHA-384: MEASUREMENT, MRTD, RTMR


def snp(args: argparse.Namespace) -> int:
    """``cordon attest policy snp``."""
    image = ("kernel", "initrd", "append", "vcpus", "vcpu_type")
    if args.ovmf is None and any(getattr(args, name) is not None for name in image):
        raise ConfigError("usage: --kernel, --initrd, --append, --vcpus and --vcpu-type go with --ovmf")
    values = [launch_digest(args)] if args.ovmf is not None else _digests(args.measurement, "--measurement")
    source = f"computed from {args.ovmf.name}" if args.ovmf is not None else "given"
    return _write_policy(args, "snp", {"measurement": values}, source)


def tdx(args: argparse.Namespace) -> int:
    """``cordon attest policy tdx``. An RTMR that is not given keeps what the base policy says."""
    given = {option: getattr(args, field) for option, field in TDX_OPTIONS.items() if getattr(args, field) is not None}
    values = {TDX_OPTIONS[option]: _digests(each, f"--{option}") for option, each in given.items()}
    return _write_policy(args, "tdx", values, "given")


def launch_digest(args: argparse.Namespace) -> str:
    """MEASUREMENT of the image that ``args`` describe, in hex.

    Raises:
        ConfigError: ``image_format``: a file or value that does not describe an image.
    """
    from sevsnpmeasure import guest, vcpu_types
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vmm_types import VMMType

    if args.vcpus is None or not 1 <= args.vcpus <= MAX_VCPUS:
        raise ConfigError(f"image_format: --vcpus: want 1 to {MAX_VCPUS}, got {args.vcpus}")
    if args.vcpu_type not in vcpu_types.CPU_SIGS:
        raise ConfigError(f"image_format: --vcpu-type: want one of {', '.join(vcpu_types.CPU_SIGS)}")
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", args.guest_features):
        raise ConfigError(f"image_format: --guest-features: want hex such as 0x1, got {args.guest_features[:40]!r}")
    if args.kernel is None and (args.initrd is not None or args.append is not None):
        raise ConfigError("image_format: --initrd and --append go with --kernel: without it nobody measures them")
    _image_file(args.ovmf, MAX_FIRMWARE)
    for path, limit in ((args.kernel, MAX_KERNEL), (args.initrd, MAX_INITRD)):
        if path is not None:
            _image_file(path, limit)
    try:
        digest: bytes = guest.calc_launch_digest(
            SevMode.SEV_SNP,
            args.vcpus,
            vcpu_types.CPU_SIGS[args.vcpu_type],
            str(args.ovmf),
            str(args.kernel or ""),
            str(args.initrd or ""),
            args.append or "",
            int(args.guest_features, 16),
            vmm_type=VMMType[args.vmm_type],
        )
    except (RuntimeError, ValueError, LookupError, AssertionError, OSError, OverflowError) as error:
        # What the library raises for firmware that is none: pages that don't fit, tables that are not there.
        raise ConfigError(f"image_format: {args.ovmf}: not measurable as SNP firmware: {error!r}") from error
    return digest.hex()


def _image_file(path: Path, limit: int) -> None:
    try:
        if not path.is_file():
            raise ConfigError(f"input_unreadable: {path}: not a regular file")
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"input_unreadable: {path}: {error.strerror}") from error
    if size < MIN_FILE:
        raise ConfigError(f"input_empty: {path}: has no bytes")
    if size > limit:
        raise ConfigError(f"input_too_large: {path}: larger than the {limit} bytes allowed")


def _digests(texts: list[str], option: str) -> list[str]:
    return [data.hex() for text in texts if (data := hex_bytes(text, option, DIGEST)) is not None]


def _write_policy(args: argparse.Namespace, section: str, values: dict[str, list[str]], source: str) -> int:
    base = policy_file(args.base, AttestationPolicy)
    if getattr(base, section) == "none":
        raise ConfigError(f"policy_format: {args.base}: accepts no {section} evidence: has no section {section}")
    body: dict[str, Any] = documents.body_of(base)
    body[section].update(values)
    text = _text(args, section, values, source, body)
    policy = documents.parse(text.encode(), AttestationPolicy, "the derived policy")  # what is written can be loaded
    if args.out is None:
        write(text.rstrip("\n"))
        return 0
    try:
        with open(args.out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"output_exists: {args.out}: exists already; a policy is never overwritten") from error
    except OSError as error:
        raise ConfigError(f"output_unwritable: {args.out}: {error.strerror}") from error
    loose = [name for name in _open_fields(body) if name != "bundle_digest"]
    lines = [f"{args.out}: written, digest {policy.digest}"]
    lines += [f"  {name}: {', '.join(each)}" for name, each in values.items()]
    lines += ["Review before you sign:"]
    lines += ["  - that these values are those of the image that was approved, computed by somebody you trust"]
    lines += [f"  - each field that says any ({len(loose)}): {', '.join(loose)}"]
    lines += [f"Then: cordon sign --key KEY --as attestation {args.out}"]
    write("\n".join(map(printable, lines)))
    return 0


def _text(
    args: argparse.Namespace, section: str, values: dict[str, list[str]], source: str, body: dict[str, Any]
) -> str:
    names = ", ".join(f"{section}.{name}" for name in values)
    head = f"# Derived from {args.base.name}: {names} {source}.\n"
    if section == "snp" and args.ovmf is not None:
        given = {name: getattr(args, name) for name in ("ovmf", "kernel", "initrd") if getattr(args, name) is not None}
        told = [f"{name} {path.name}" for name, path in given.items()]
        told += [f"append {args.append!r}"] if args.append is not None else []
        told += [f"{args.vcpus} x {args.vcpu_type}", f"guest features {args.guest_features}", f"VMM {args.vmm_type}"]
        head += f"# Image: {'; '.join(told)}.\n"
    head += "# Every field has a value or `any`. Review it, then sign it: cordon sign --key KEY --as attestation FILE\n"
    text: str = yaml.safe_dump(body, sort_keys=False, default_flow_style=False, width=120)
    return "".join(f"{printable(line)}\n" for line in head.splitlines()) + text


def _open_fields(body: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the fields that are not looked at."""
    found = []
    for name, value in body.items():
        if isinstance(value, dict):
            found += _open_fields(value, f"{prefix}{name}.")
        elif value == "any":
            found.append(prefix + name)
    return found
