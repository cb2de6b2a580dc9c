"""Evidence and quote files: the formats in use are read, everything else is an error with its code."""

import base64
import contextlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon.attest import azure
from cordon.attest.azure import tpm
from cordon.errors import ConfigError
from fakes import azure_pki

REPORT = bytes(range(256)) * 8
VEK = b"\x30\x82" + bytes(100)


def quote_json(quote=None):
    quote = quote or azure_pki.tpm_quote(b"nonce")
    return {
        "message": quote.message.hex(),
        "signature": quote.signature.hex(),
        "pcrs": [value.hex() for value in quote.pcrs],
    }


def body(**changes):
    encoded = {"hcl_report": REPORT, "vcek": VEK}
    found = {
        "version": 1,
        "tpm_quote": quote_json(),
        **{name: base64.urlsafe_b64encode(data).decode() for name, data in encoded.items()},
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def read(tree):
    return azure.read_evidence(json.dumps(tree).encode())


def quote_bin(quote):
    return b"".join(
        struct.pack("<Q", count) + data
        for count, data in (
            (len(quote.signature), quote.signature),
            (len(quote.message), quote.message),
            (len(quote.pcrs), b"".join(quote.pcrs)),
        )
    )


@pytest.mark.parametrize("version", [1, 2])
def test_versions_1_and_2(version):
    found = read(body(version=version))
    assert (found.version, found.tee, found.hcl_report, found.vek, found.quote) == (version, "snp", REPORT, VEK, None)
    assert found.tpm_quote == azure_pki.tpm_quote(b"nonce")
    tdx = read(body(version=version, vcek=None, td_quote=base64.urlsafe_b64encode(VEK).decode().rstrip("=")))
    assert (tdx.tee, tdx.vek, tdx.quote) == ("tdx", None, VEK)


def test_before_version_1():
    quote = azure_pki.tpm_quote(b"nonce")
    numbers = {
        "message": list(quote.message),
        "signature": list(quote.signature),
        "pcrs": [list(value) for value in quote.pcrs],
    }
    found = read({"quote": numbers, "report": list(REPORT), "vcek": "-----BEGIN CERTIFICATE-----"})
    assert (found.version, found.tee, found.hcl_report) == (0, "snp", REPORT) and found.tpm_quote == quote
    tdx = read({"tpm_quote": numbers, "hcl_report": list(REPORT), "td_quote": list(VEK)})
    assert (tdx.version, tdx.tee, tdx.quote) == (0, "tdx", VEK)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 0}, "evidence_format"),
        ({"version": 3}, "evidence_format"),
        ({"version": True}, "evidence_format"),
        ({"version": "1"}, "evidence_format"),
        ({"hcl_report": None}, "evidence_format"),
        ({"vcek": None}, "evidence_format"),
        ({"more": 1}, "evidence_format"),
        ({"hcl_report": "a+b/"}, "evidence_format"),
        ({"hcl_report": "A" * 40000}, "evidence_format"),
        ({"hcl_report": "AB=="}, "evidence_format"),  # stray bits
        ({"hcl_report": [256]}, "evidence_format"),
        ({"vcek": 7}, "evidence_format"),
        ({"tpm_quote": None}, "evidence_format"),
        ({"tpm_quote": []}, "tpm_quote_format"),
        ({"tpm_quote": {}}, "tpm_quote_format"),
        ({"tpm_quote": {"message": "", "signature": "", "pcrs": ["00"]}}, "tpm_quote_format"),
        ({"tpm_quote": {"message": "", "signature": "", "pcrs": [[0] * 32] * 25}}, "tpm_quote_format"),
        ({"tpm_quote": {"message": "0G", "signature": "", "pcrs": []}}, "tpm_quote_format"),
        ({"tpm_quote": {"message": "AB", "signature": "", "pcrs": []}}, "tpm_quote_format"),
        ({"tpm_quote": {"message": "00" * 3000, "signature": "", "pcrs": []}}, "tpm_quote_format"),
    ],
)
def test_other_shapes_are_errors(change, code):
    with pytest.raises(ConfigError, match=rf"^{code}: "):
        read(body(**change))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff{}", b'{"version": 1, "version": 2}', b"[" * 100_000, b"{}" + b" " * 600_000]
)
def test_what_is_no_json_object_is_an_error(data):
    with pytest.raises(ConfigError, match=r"^evidence_format: "):
        azure.read_evidence(data)


def test_a_quote_alone_as_json_and_binary():
    quote = azure_pki.tpm_quote(b"nonce")
    assert azure.read_tpm_quote(json.dumps(quote_json(quote)).encode()) == quote
    binary = quote_bin(quote)
    assert azure.read_tpm_quote(binary) == quote
    for broken in (binary[:-1], binary + b"\0", binary[:5], b"", bytes(20_000), struct.pack("<Q", 2**63) + binary[8:]):
        with pytest.raises(ConfigError, match=r"^tpm_quote_format: "):
            azure.read_tpm_quote(broken)


def test_an_attestation_is_read_to_its_last_byte():
    message = azure_pki.attest(b"nonce")
    found = tpm.parse_attest(message)
    assert (found.extra_data, found.clock, found.reset_count, found.safe) == (b"nonce", 123456, 3, 1)
    assert found.selection == ((0x000B, tuple(range(24))),)
    for broken in (*(message[:size] for size in range(len(message))), message + b"\0", bytes(3000)):
        with pytest.raises(ConfigError, match=r"^tpm_quote_format: "):
            tpm.parse_attest(broken)


def test_a_count_of_banks_that_cannot_be_is_an_error():
    message = azure_pki.attest(b"", banks=())
    at = len(message) - 2 - 32 - 4
    with pytest.raises(ConfigError, match=r"^tpm_quote_format: "):
        tpm.parse_attest(message[:at] + b"\xff\xff\xff\xff" + message[at + 4 :])


@pytest.mark.parametrize(
    ("indices", "words"), [((), "none"), ((3,), "3"), (tuple(range(24)), "0-23"), ((0, 1, 2, 7, 14, 15), "0-2,7,14-15")]
)
def test_indices_in_messages(indices, words):
    assert tpm.shown(indices) == words


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=400), st.integers(0, 121).map(lambda n: azure_pki.attest(b"nonce")[:n] + b"\xff" * 40))
)
def test_only_config_error_leaks(data):
    for reader in (azure.read_evidence, azure.read_tpm_quote, tpm.parse_attest):
        with contextlib.suppress(ConfigError):
            reader(data)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["version", "tpm_quote", "quote", "hcl_report", "report", "vcek", "td_quote"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "pcrs", "signature"]), inner)
            ),
            max_leaves=6,
        ),
    )
)
def test_only_config_error_leaks_from_json(tree):
    with contextlib.suppress(ConfigError):
        read(tree)


def test_recorded_files(vectors):
    for tee in ("snp", "tdx"):
        folder = vectors / f"attestation/{tee}/azure-vtpm-trustee"
        binary = azure.read_tpm_quote((folder / "quote.bin").read_bytes())
        assert binary == azure.read_tpm_quote((folder / "tpm-quote-v1.json").read_bytes())
        assert len(binary.pcrs) == 24 and tpm.parse_attest(binary.message).extra_data == b"challenge"
        for path in folder.glob("evidence-*.json"):
            found = azure.read_evidence(path.read_bytes())
            assert found.tee == tee and len(found.hcl_report) == 2600
