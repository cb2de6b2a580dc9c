"""The device layer against a kernel, a driver and a vTPM that behave as the sources say."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random

import pytest

from cordon.errors import ConfigError
from cordon.flare import devices, nvml, sev_guest, vtpm
from cordon.flare.devices import TSM_REPORT, Files, gramine_quote, tsm_report
from fakes import tee_devices
from fakes.tee_devices import FakeNvmlLibrary, FakeSevGuest, FakeTpm, FakeTsm, Gpu, cert_table, hcl_report

DATA = bytes(range(64))


def signed(data: bytes, privlevel: int) -> bytes:
    return b"report of " + data + bytes([privlevel])


def made(data: bytes, privlevel: int) -> tuple[bytes, bytes | None]:
    return signed(data, privlevel), b"certificates"


class Clock:
    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


# --- configfs-tsm


def test_a_report_comes_with_provider_certificates_and_generation_and_leaves_nothing_behind():
    tsm = FakeTsm(made)
    found = tsm_report(DATA, files=tsm)
    assert found == devices.TsmReport("sev_guest", signed(DATA, 0), b"certificates", 1)
    assert tsm.entries == {} and tsm.made == 1


def test_the_privilege_level_is_set_before_the_report():
    assert tsm_report(DATA, files=FakeTsm(made), privlevel=2).outblob == signed(DATA, 2)


def test_a_provider_without_certificates_shows_no_auxblob():
    assert tsm_report(DATA, files=FakeTsm(lambda data, _: (data, None), "tdx_guest")).auxblob == b""


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_is_64_bytes(length):
    with pytest.raises(ConfigError, match=r"^report_data: "):
        tsm_report(bytes(length), files=FakeTsm(made))


def once(act):
    """A disturbance of the first attempt only."""

    def disturb(tsm, entry):
        if tsm.made == 1:
            act(tsm, entry)

    return disturb


def overwrite(tsm, entry):
    tsm.write(entry / "inblob", b"\xee" * 64)


def drop_the_write(tsm, entry):
    """The kernel refused our inblob and close() did not say so: the one of another process is still there."""
    tsm.entries[entry].inblob = b"\xee" * 64
    tsm.entries[entry].writes -= 1


@pytest.mark.parametrize("act", [overwrite, drop_the_write])
def test_another_writer_is_noticed_by_the_generation_and_the_report_made_anew(act):
    tsm, clock = FakeTsm(made, disturb=once(act)), Clock()
    assert tsm_report(DATA, files=tsm, sleep=clock).outblob == signed(DATA, 0)
    assert tsm.made == 2 and tsm.entries == {} and clock.slept == [devices.PAUSE_S]


def test_a_writer_who_never_stops_is_an_error_and_not_a_report():
    tsm = FakeTsm(made, disturb=overwrite)
    with pytest.raises(ConfigError, match=r"^tsm_interference: .*5 attempts"):
        tsm_report(DATA, files=tsm, sleep=Clock())
    assert tsm.made == 5 and tsm.entries == {}


def raising(number):
    def make(data, privlevel):
        raise OSError(number, os.strerror(number), "outblob")

    return make


def test_a_busy_device_is_asked_again_then_reported():
    tsm, clock = FakeTsm(raising(errno.EBUSY)), Clock()
    with pytest.raises(ConfigError, match=r"^tsm_busy: "):
        tsm_report(DATA, files=tsm, sleep=clock)
    assert len(clock.slept) == 4 and tsm.entries == {}


def test_a_device_that_is_busy_once_answers():
    calls = []

    def make(data, privlevel):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EBUSY, "busy", "outblob")
        return made(data, privlevel)

    assert tsm_report(DATA, files=FakeTsm(make), sleep=Clock()).outblob == signed(DATA, 0)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EIO, "tsm_failed"),
        (errno.EINVAL, "tsm_failed"),
        (errno.ETIMEDOUT, "tsm_failed"),
        (errno.ENXIO, "tsm_provider"),
        (errno.EACCES, "tsm_permission"),
    ],
)
def test_an_entry_is_removed_whatever_the_device_says(number, code):
    tsm = FakeTsm(raising(number))
    with pytest.raises(ConfigError, match=f"^{code}: "):
        tsm_report(DATA, files=tsm)
    assert tsm.made == 1 and tsm.entries == {}


def test_an_entry_is_removed_when_the_process_is_interrupted():
    def make(data, privlevel):
        raise KeyboardInterrupt

    tsm = FakeTsm(make)
    with pytest.raises(KeyboardInterrupt):
        tsm_report(DATA, files=tsm)
    assert tsm.entries == {}


def test_no_configfs_no_provider_and_the_wrong_provider_say_what_to_do():
    with pytest.raises(ConfigError, match=r"^tsm_absent: .*mount -t configfs"):
        tsm_report(DATA, files=FakeTsm(made, mounted=False))
    with pytest.raises(ConfigError, match=r"^tsm_provider: .*modprobe"):
        tsm_report(DATA, files=FakeTsm(made, provider=None))
    with pytest.raises(ConfigError, match=r"^tsm_provider: .*tdx_guest, want sev_guest"):
        tsm_report(DATA, provider="sev_guest", files=FakeTsm(made, provider="tdx_guest"))


def test_without_the_hardware_the_real_file_system_gives_the_same_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"^tsm_absent: .*No such file"):
        tsm_report(DATA, tmp_path / "tsm" / "report")


def test_a_generation_that_is_no_number_is_refused():
    tsm = FakeTsm(made)
    tsm.read = lambda path, limit: b"many\n"
    with pytest.raises(ConfigError, match=r"^tsm_failed: .*generation"):
        tsm_report(DATA, files=tsm)
    assert tsm.entries == {}


def test_files_are_read_up_to_their_limit_and_written_at_once(tmp_path):
    files, path = Files(), tmp_path / "attribute"
    with pytest.raises(FileNotFoundError):
        files.write(path, b"12345")
    path.touch()
    files.write(path, b"12345")
    assert files.read(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        files.read(path, 4)
    files.mkdir(tmp_path / "entry")
    files.rmdir(tmp_path / "entry")
    assert not (tmp_path / "entry").exists()


def test_require_names_what_is_missing_and_is_silent_where_it_is(tmp_path):
    for device in ("tsm", "sev-guest", "gramine", "vtpm"):
        with pytest.raises(ConfigError, match=r"_absent: looked for /.*confidential VM"):
            devices.require(device, tmp_path)
    (tmp_path / TSM_REPORT.relative_to("/")).mkdir(parents=True)
    devices.require("tsm", tmp_path)


# --- /dev/sev-guest


@pytest.fixture
def device(tmp_path) -> Path:
    path = tmp_path / "sev-guest"
    path.touch()
    return path


def ask(device, ioctl, **more):
    return sev_guest.sev_guest_report(DATA, device, ioctl, sleep=Clock(), **more)


def test_the_ioctl_gives_report_and_certificate_table(device):
    table = cert_table([(tee_devices.VCEK, b"leaf")])
    ioctl = FakeSevGuest(signed, table)
    report, found = ask(device, ioctl, vmpl=1)
    assert report == signed(DATA, 1)
    assert found[: len(table)] == table and sev_guest.certificates_of(found) == {"vcek": b"leaf"}
    assert ioctl.calls == [0xC0205302]


def test_a_host_without_certificates_gives_an_empty_table(device):
    assert ask(device, FakeSevGuest(signed)) == (signed(DATA, 0), b"")


def test_certificates_too_large_for_the_kernel_are_done_without(device):
    ioctl = FakeSevGuest(signed, host_needs=0x5000)
    assert ask(device, ioctl) == (signed(DATA, 0), b"")
    assert ioctl.calls == [0xC0205302, 0xC0205300]


def test_a_throttled_request_is_repeated_and_then_given_up(device):
    assert ask(device, FakeSevGuest(signed, busy=3))[0] == signed(DATA, 0)
    with pytest.raises(ConfigError, match=r"^sev_guest_busy: "):
        ask(device, FakeSevGuest(signed, busy=99))


@pytest.mark.parametrize(
    ("ioctl", "said"),
    [
        (FakeSevGuest(signed, fail=(errno.EIO, 0x16)), "firmware error 0x16"),
        (FakeSevGuest(signed, fail=(errno.ENOTTY, 0xFF)), "until a restart"),
        (FakeSevGuest(signed, status=0x27), "status 0x27"),
        (FakeSevGuest(signed, size=4000), "4000 bytes"),
    ],
)
def test_errors_of_firmware_and_host_are_named(device, ioctl, said):
    with pytest.raises(ConfigError, match=f"^sev_guest_failed: .*{said}"):
        ask(device, ioctl)


def test_the_device_is_closed_after_an_error(device):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        ask(device, FakeSevGuest(signed, fail=(errno.EIO, 0)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_device_no_permission_and_a_file_that_is_no_device(tmp_path, device, monkeypatch):
    with pytest.raises(ConfigError, match=r"^sev_guest_absent: .*modprobe sev-guest"):
        sev_guest.sev_guest_report(DATA, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^sev_guest_failed: Inappropriate ioctl"):  # the real fcntl.ioctl
        sev_guest.sev_guest_report(DATA, device)

    def refused(path, flags):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(sev_guest.os, "open", refused)
    with pytest.raises(ConfigError, match=r"^sev_guest_permission: "):
        sev_guest.sev_guest_report(DATA, device)


HEADER = Path("/usr/include/linux/sev-guest.h")


@pytest.mark.skipif(not HEADER.exists(), reason=f"no {HEADER} (package linux-libc-dev)")
def test_the_structures_are_those_of_the_kernels_header(tmp_path):
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/ioctl.h>\n#include <linux/sev-guest.h>\n"
        'int main() { printf("%zu %zu %zu %zu %zu %zu %zu %lu %lu", sizeof(struct snp_report_req),'
        "sizeof(struct snp_ext_report_req), offsetof(struct snp_ext_report_req, certs_address),"
        "sizeof(struct snp_guest_request_ioctl), offsetof(struct snp_guest_request_ioctl, req_data),"
        "offsetof(struct snp_guest_request_ioctl, resp_data), sizeof(struct snp_report_resp),"
        "(unsigned long)SNP_GET_REPORT, (unsigned long)SNP_GET_EXT_REPORT); }"
    )
    try:
        subprocess.run(["cc", "-o", str(tmp_path / "layout"), str(source)], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    said = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout
    as_in_the_fake = [96, 112, 96, 32, 8, 16, 4000, 0xC0205300, 0xC0205302]
    assert list(map(int, said.split())) == as_in_the_fake


# --- the host's certificate table


def test_every_certificate_is_found_by_the_guid_as_it_stands_in_memory():
    named = [("vcek", tee_devices.VCEK), ("vlek", tee_devices.VLEK), ("ask", tee_devices.ASK)]
    named += [("ark", tee_devices.ARK), ("crl", tee_devices.CRL)]
    table = cert_table([(guid, name.encode()) for name, guid in named] + [(b"\x01" * 16, b"somebody's")])
    assert sev_guest.certificates_of(table) == {name: name.encode() for name, _ in named}


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(0x4000)])
def test_no_certificates(table):
    assert sev_guest.certificates_of(table) == {}


GOOD = cert_table([(tee_devices.VCEK, b"leaf"), (tee_devices.ASK, b"above")])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (GOOD[:48], "no closing entry"),
        (GOOD[:-1], "ask at 76"),  # truncated
        (GOOD[:16] + (0).to_bytes(4, "little") + GOOD[20:], "vcek at 0"),  # into the head
        (GOOD[:20] + (0xFFFFFFFF).to_bytes(4, "little") + GOOD[24:], "vcek at 72"),
        (GOOD[:20] + bytes(4) + GOOD[24:], "0 bytes"),
        (cert_table([(tee_devices.VCEK, b"a"), (tee_devices.VCEK, b"b")]), "vcek stands there twice"),
    ],
)
def test_a_malformed_table_is_refused(table, said):
    with pytest.raises(ConfigError, match=f"^cert_table: .*{said}"):
        sev_guest.certificates_of(table)


def test_random_tables_are_read_or_refused_and_never_anything_else():
    random = Random(5)
    for _ in range(3000):
        table = bytearray(GOOD)
        for _ in range(random.randrange(1, 6)):
            table[random.randrange(len(table))] = random.choice((0, 1, 24, 72, 0xFF, random.randrange(256)))
        try:
            found = sev_guest.certificates_of(bytes(table))
        except ConfigError as error:
            assert str(error).startswith("cert_table: ")
        else:
            assert all(certificate in bytes(table) for certificate in found.values())


def test_no_truncation_of_a_table_yields_part_of_a_certificate():
    whole = sev_guest.certificates_of(GOOD)
    for length in range(1, len(GOOD)):
        with pytest.raises(ConfigError, match=r"^cert_table: "):
            sev_guest.certificates_of(GOOD[:length])
    assert whole == {"vcek": b"leaf", "ask": b"above"}


# --- Gramine


class Gramine(Files):
    def __init__(self, kind: bytes = b"dcap") -> None:
        self.kind, self.data = kind, b""

    def read(self, path: Path, limit: int) -> bytes:
        if path.name == "attestation_type":
            return self.kind
        return b"quote of " + self.data

    def write(self, path: Path, data: bytes) -> None:
        assert path.name == "user_report_data"
        self.data = data


def test_a_quote_inside_gramine():
    assert gramine_quote(DATA, files=Gramine()) == b"quote of " + DATA
    assert gramine_quote(DATA, files=Gramine(b"dcap\n")) == b"quote of " + DATA


def test_gramine_without_dcap_or_no_gramine_at_all(tmp_path):
    with pytest.raises(ConfigError, match=r"^gramine_type: .*'none', want 'dcap'"):
        gramine_quote(DATA, files=Gramine(b"none"))
    with pytest.raises(ConfigError, match=r"^gramine_absent: .*gramine-sgx"):
        gramine_quote(DATA, tmp_path)


# --- NVML, through the real bindings

NONCE = b"n" * 32


def gpu(number: int = 1, **changes) -> Gpu:
    fields = {"uuid": f"GPU-{number}", "architecture": 9, "nonce": NONCE, "report": b"spdm%d" % number, "chain": b"PEM"}
    return Gpu(**{**fields, **changes})


@pytest.fixture
def library(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def load(*gpus, **settings) -> FakeNvmlLibrary:
        fake = FakeNvmlLibrary(list(gpus), **settings)
        monkeypatch.setattr(pynvml, "nvmlLib", fake)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return fake

    return load


def test_every_gpu_reports_over_the_nonce_sorted_by_uuid(library):
    fake = library(gpu(2), gpu(1, architecture=10))
    assert nvml.gpu_reports(NONCE) == [
        nvml.GpuReport("GPU-1", "blackwell", b"spdm1", b"PEM"),
        nvml.GpuReport("GPU-2", "hopper", b"spdm2", b"PEM"),
    ]
    assert nvml.require_cc_mode() == 2
    assert fake.open == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"cc_feature": 0}, "confidential computing is off"),
        ({"devtools": 1}, "developer tools are on"),
        ({"environment": 1}, "environment 1"),
        ({"multi_gpu": 1}, "protected PCIe"),
        ({"ready": 0}, "take no work"),
        ({"state": 3}, "no confidential computing"),
    ],
)
def test_a_gpu_outside_cc_mode_is_refused_and_sends_no_evidence(library, setting, said):
    fake = library(gpu(), **setting)
    for ask_for in (nvml.require_cc_mode, lambda: nvml.gpu_reports(NONCE)):
        with pytest.raises(ConfigError, match=f"^gpu_cc_mode: .*{said}"):
            ask_for()
    assert fake.open == 0


def test_all_wrong_settings_are_named_together(library):
    library(gpu(), cc_feature=0, devtools=1)
    with pytest.raises(ConfigError, match=r"computing is off.*developer tools are on"):
        nvml.require_cc_mode()


def test_encrypted_nvlink_and_drivers_that_know_no_multi_gpu_mode_are_fine(library):
    library(gpu(), multi_gpu=2)
    assert nvml.require_cc_mode() == 1
    library(gpu(), old_driver=True)
    assert nvml.require_cc_mode() == 1


def test_no_gpu_no_driver_no_library_no_package(library, monkeypatch):
    library()
    with pytest.raises(ConfigError, match=r"^gpu_absent: .*sees no GPU"):
        nvml.require_cc_mode()
    fake = library(gpu(), init=9)
    with pytest.raises(ConfigError, match=r"^gpu_absent: .*Driver Not Loaded.*modprobe nvidia"):
        nvml.gpu_reports(NONCE)
    assert fake.open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigError, match=r"^gpu_absent: .*nvidia-ml-py"):
        nvml.require_cc_mode()


def test_a_gpu_that_nobody_attests_is_refused(library):
    library(gpu())
    with pytest.raises(ConfigError, match=r"^gpu_unexpected: 1 GPUs"):
        nvml.require_no_gpu()
    library()
    nvml.require_no_gpu()
    library(gpu(), init=9)
    nvml.require_no_gpu()
    library(gpu(), init=999)  # unknown error: not the same as none
    with pytest.raises(ConfigError, match=r"^gpu_failed: "):
        nvml.require_no_gpu()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": 8}, "architecture 8"),
        ({"nonce": b"x" * 32}, "Invalid Argument"),
        ({"report": b""}, "report has 0 bytes"),
        ({"report": b"r" * 0x2001}, "8193 bytes"),
        ({"chain": b""}, "certificate chain has 0 bytes"),
    ],
)
def test_what_a_gpu_may_not_answer(library, changes, said):
    fake = library(gpu(**changes))
    with pytest.raises(ConfigError, match=f"^gpu_failed: .*{said}"):
        nvml.gpu_reports(NONCE)
    assert fake.open == 0


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 64])
def test_the_spdm_nonce_is_32_bytes(nonce):
    with pytest.raises(ConfigError, match=r"^gpu_nonce: "):
        nvml.gpu_reports(nonce)


# --- Azure


def azure_report(user_data: bytes) -> bytes:
    return hcl_report(b"hardware", user_data)


def test_azure_writes_our_data_and_reads_the_report_that_holds_them():
    tpm = FakeTpm(azure_report)
    assert vtpm.azure_hcl_report(DATA, tpm, Clock()) == azure_report(DATA)
    assert tpm.defined


def test_azure_notices_that_another_process_wrote_in_between():
    assert vtpm.azure_hcl_report(DATA, FakeTpm(azure_report, overwritten=2), Clock()) == azure_report(DATA)
    with pytest.raises(ConfigError, match=r"^vtpm_interference: "):
        vtpm.azure_hcl_report(DATA, FakeTpm(azure_report, overwritten=99), Clock())


@pytest.mark.parametrize(
    "report", [b"", azure_report(DATA)[:1300], azure_report(DATA).replace(b"user-data", b"other-key")]
)
def test_azure_refuses_a_report_without_our_data(report):
    with pytest.raises(ConfigError, match=r"^vtpm_failed: "):
        vtpm.azure_hcl_report(DATA, FakeTpm(lambda _: report), Clock())


def test_missing_tools_are_named_once_and_nothing_is_defined():
    tpm = FakeTpm(azure_report, installed=False)
    with pytest.raises(ConfigError, match=r"^vtpm_tools: tpm2_nvreadpublic"):
        vtpm.azure_hcl_report(DATA, tpm, Clock())
    with pytest.raises(ConfigError, match=r"^vtpm_tools: cordon-no-such-tool .*tpm2-tools"):
        vtpm.run_tool(["cordon-no-such-tool"], b"")


def test_tools_are_run_with_input_and_their_failures_reported(tmp_path):
    assert vtpm.run_tool(["cat"], b"\x00\xff") == b"\x00\xff"
    script = tmp_path / "tpm2_fail"
    script.write_text("#!/bin/sh\necho 'ERROR: no TPM' >&2\nexit 3\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ConfigError, match=r"^vtpm_failed: .*exit 3: ERROR: no TPM"):
        vtpm.run_tool([str(script)], b"")


def test_a_tpm_quote_covers_the_digest_of_our_data():
    tpm = FakeTpm(azure_report)
    quote = json.loads(vtpm.azure_tpm_quote(DATA, tpm))
    assert tpm.nonces == [hashlib.sha256(DATA).hexdigest()]
    assert bytes.fromhex(quote["message"]) == b"message" and bytes.fromhex(quote["signature"]) == b"signature"
    assert quote["pcrs"] == ["00" * 32] * 24
    with pytest.raises(ConfigError, match=r"^vtpm_failed: .*31 bytes"):
        vtpm.azure_tpm_quote(DATA, FakeTpm(azure_report, quote=(b"m", b"s", bytes(31))))


def test_the_metadata_service_gives_certificates_and_td_quotes():
    asked = []

    def fetch(method, path, body):
        asked.append((method, path, body))
        return b'{"quote": "AP__"}' if body else b'{"vcekCert": "leaf", "certificateChain": "above"}'

    assert vtpm.azure_vcek(fetch) == (b"leaf", b"above")
    assert vtpm.azure_td_quote(azure_report(DATA), fetch) == b"\x00\xff\xff"
    assert asked[1][:2] == ("POST", "/acc/tdquote") and b"aGFyZHdhcmU" in asked[1][2]
    wrong = b'{"quote": 1, "vcekCert": 1}', b'{"quote": "=!", "vcekCert": ""}'
    for answer in (b"", b"[]", b"{}", b"[" * 100_000, *wrong):
        with pytest.raises(ConfigError):
            vtpm.azure_vcek(lambda *_, answer=answer: answer)
        with pytest.raises(ConfigError):
            vtpm.azure_td_quote(azure_report(DATA), lambda *_, answer=answer: answer)


class Metadata(BaseHTTPRequestHandler):
    """Azure's metadata service: refuses a request without its header."""

    def do_GET(self):
        self.answer(200 if self.headers["Metadata"] == "true" else 400, b"certificates")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if self.headers["Content-Type"] == "application/json" else 400, body)

    def answer(self, status, body):
        if self.path == "/gone":
            status = 410
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body * (10_000 if self.path == "/large" else 1))

    def log_message(self, *_):
        pass


def test_the_metadata_service_is_asked_over_http(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        monkeypatch.setattr(vtpm, "IMDS", f"127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert vtpm.imds("GET", "/metadata/THIM/amd/certification") == b"certificates"
        assert vtpm.imds("POST", "/acc/tdquote", b"{}") == b"{}"
        for path in ("/gone", "/large"):
            with pytest.raises(ConfigError, match=r"^imds_failed: "):
                vtpm.imds("GET", path)
        server.shutdown()
    with pytest.raises(ConfigError, match=r"^imds_failed: .*refused"):
        vtpm.imds("GET", "/")
