"""Evidence of Azure confidential VMs, where a paravisor holds the TEE and the guest has a vTPM (by ``tpm2-tools``).

The guest cannot choose the hardware's report data. It writes 64 bytes of user data to an NV index of the vTPM; the
paravisor puts them into the runtime claims, has the hardware sign the claims' SHA-256, and leaves header, report and
claims in another NV index ("HCL report"). The vTPM's attestation key is in the claims, so a quote by it belongs to
this VM. Sources: Microsoft, "Confidential VM guest attestation design"; kinvolk/azure-cvm-tooling ``az-cvm-vtpm``.

Not run on a real Azure VM: written from those sources and from recorded evidence.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cordon.errors import ConfigError
from cordon.flare.devices import ATTEMPTS, check_length

HCL_REPORT = "0x01400001"  # NV indices
USER_DATA = "0x01400002"
ATTESTATION_KEY = "0x81000003"  # persistent handle
PCRS = "sha256:" + ",".join(map(str, range(24)))
IMDS = "169.254.169.254"  # instance metadata service: link-local, answered by the host
TIMEOUT_S = 30
PAUSE_S = 1.0
MAX_OUTPUT = 64 * 1024
# HCL report: 32 bytes of header, 1184 of hardware report (a TDREPORT fills 1024 of them), then IgvmRequestData.
REPORT_AT = 32
TD_REPORT_BYTES = 1024
CLAIMS_SIZE_AT = 1232
CLAIMS_AT = 1236

Run = Callable[[list[str], bytes], bytes]
Fetch = Callable[[str, str, bytes | None], bytes]


def run_tool(command: list[str], given: bytes) -> bytes:
    """What ``command`` prints, of ``given`` on its input.

    Raises:
        ConfigError: ``vtpm_tools`` (not installed), ``vtpm_failed`` (exit code, and what it said).
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"vtpm_tools: {command[0]} is not installed: the image needs tpm2-tools 5") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"vtpm_failed: {command[0]}: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
        raise ConfigError(f"vtpm_failed: {' '.join(command)}: exit {done.returncode}: {said}")
    if len(done.stdout) > MAX_OUTPUT:
        raise ConfigError(f"vtpm_failed: {command[0]}: {len(done.stdout)} bytes, at most {MAX_OUTPUT}")
    return done.stdout


def azure_hcl_report(user_data: bytes, run: Run = run_tool, sleep: Callable[[float], None] = time.sleep) -> bytes:
    """The HCL report whose runtime claims hold ``user_data`` (64 bytes).

    The NV index is the VM's: another process may write between our write and our read, and the paravisor may be late.
    So the claims are looked at, and the whole is done again while they hold something else.

    Raises:
        ConfigError: as ``run_tool``; ``vtpm_interference``.
    """
    check_length(user_data)
    try:
        run(["tpm2_nvreadpublic", USER_DATA], b"")
    except ConfigError as error:
        if not str(error).startswith("vtpm_failed:"):
            raise
        run(["tpm2_nvdefine", "-C", "o", USER_DATA, "-s", str(len(user_data))], b"")
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(PAUSE_S)
        run(["tpm2_nvwrite", "-C", "o", USER_DATA, "-i", "-"], user_data)
        report = run(["tpm2_nvread", "-C", "o", HCL_REPORT], b"")
        if _user_data(report) == user_data.hex():
            return report
    raise ConfigError(f"vtpm_interference: the runtime claims held other user data at {ATTEMPTS} attempts")


def azure_tpm_quote(user_data: bytes, run: Run = run_tool) -> bytes:
    """A quote by the vTPM over SHA-256(``user_data``), PCR 0 to 23: JSON {message, pcrs, signature}, hex.

    (TPM 2.0 takes at most the size of its largest digest as qualifying data, so not 64 bytes.)

    Raises:
        ConfigError: as ``run_tool``.
    """
    check_length(user_data)
    with tempfile.TemporaryDirectory(prefix="cordon-quote-") as folder:
        message, signature, values = (Path(folder) / name for name in ("message", "signature", "pcrs"))
        nonce = hashlib.sha256(user_data).hexdigest()
        key = ["-c", ATTESTATION_KEY, "-l", PCRS, "-q", nonce, "-g", "sha256"]
        run(["tpm2_quote", *key, "-m", str(message), "-s", str(signature), "-f", "plain"], b"")
        run(["tpm2_pcrread", PCRS, "-o", str(values)], b"")
        try:
            digests = values.read_bytes()
            quote = {"message": message.read_bytes().hex(), "signature": signature.read_bytes().hex()}
        except OSError as error:
            raise ConfigError(f"vtpm_failed: tpm2_quote left no {error.filename}: {error.strerror}") from error
    if len(digests) != 24 * 32:
        raise ConfigError(f"vtpm_failed: tpm2_pcrread gave {len(digests)} bytes, want 24 SHA-256 values")
    pcrs = [digests[start : start + 32].hex() for start in range(0, len(digests), 32)]
    return json.dumps({**quote, "pcrs": pcrs}, sort_keys=True).encode()


def imds(method: str, path: str, body: bytes | None = None) -> bytes:
    """What the host's metadata service answers. Plain HTTP: nothing in it is believed, the vendors' signatures are.

    Raises:
        ConfigError: ``imds_failed``.
    """
    headers = {"Metadata": "true", **({} if body is None else {"Content-Type": "application/json"})}
    connection = http.client.HTTPConnection(IMDS, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read(MAX_OUTPUT + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"imds_failed: http://{IMDS}{path}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200 or len(data) > MAX_OUTPUT:
        raise ConfigError(f"imds_failed: http://{IMDS}{path}: status {answer.status}, {len(data)} bytes")
    return data


def azure_vcek(fetch: Fetch = imds) -> tuple[bytes, bytes]:
    """(VCEK, chain of ASK and ARK) of this machine, PEM, from the host's certificate cache."""
    answer = _object(fetch("GET", "/metadata/THIM/amd/certification", None))
    return _text(answer, "vcekCert").encode(), _text(answer, "certificateChain").encode()


def azure_td_quote(hcl_report: bytes, fetch: Fetch = imds) -> bytes:
    """The TD quote over the TDREPORT inside ``hcl_report``: the host's quoting enclave makes it."""
    report = hcl_report[REPORT_AT : REPORT_AT + TD_REPORT_BYTES]
    body = json.dumps({"report": base64.urlsafe_b64encode(report).rstrip(b"=").decode()}).encode()
    quote = _text(_object(fetch("POST", "/acc/tdquote", body)), "quote")
    try:
        return base64.b64decode(quote + "=" * (-len(quote) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"imds_failed: the quote is not base64url: {error}") from error


def _user_data(report: bytes) -> str:
    """``user-data`` in the runtime claims, lower-case hex."""
    size = int.from_bytes(report[CLAIMS_SIZE_AT:CLAIMS_AT], "little")
    if len(report) < CLAIMS_AT + size or not size:
        raise ConfigError(f"vtpm_failed: HCL report of {len(report)} bytes with runtime claims of {size}")
    return _text(_object(report[CLAIMS_AT : CLAIMS_AT + size]), "user-data").lower()


def _object(data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"vtpm_failed: not JSON: {data[:80]!r}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"vtpm_failed: not a JSON object: {data[:80]!r}")
    return tree


def _text(tree: dict[str, Any], name: str) -> str:
    value = tree.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"vtpm_failed: no text {name!r} in the answer")
    return value
