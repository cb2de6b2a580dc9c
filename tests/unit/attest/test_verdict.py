"""What all verifiers share: details that are safe to show, and instants that can be shown."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest import nvgpu, snp
from cordon.attest.azure import maa
from cordon.attest.nvgpu import nras
from cordon.attest.verdict import MAX_DETAIL, Check, printable, utc
from cordon.errors import ConfigError
from fakes import amd_pki, azure_pki, nvidia_pki

HOSTILE = "\x1b]0;pwned\x07 \x9b2J \u202e\u2066 \r\n2026-11-24 ERROR hospital-b \x7f \ud800 \u2028 \0"
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))
NO_INSTANTS = [datetime(2026, 6, 1), datetime.min.replace(tzinfo=EAST), datetime.max.replace(tzinfo=WEST)]
EDGES = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]


def test_a_check_holds_nothing_that_a_terminal_or_a_log_obeys():
    found = Check("code" + HOSTILE, "fail", HOSTILE)
    for text in (found.code, found.detail):
        assert text.isascii() and text.isprintable()
    assert "\\x1b]0;pwned\\x07" in found.detail and "\\r\\n2026" in found.detail


@pytest.mark.parametrize("text", ["", "plain, 'as' it is: \\x1b", "f" * MAX_DETAIL])
def test_what_is_printable_stays_as_it_is(text):
    assert Check("code", "pass", text).detail == text


@pytest.mark.parametrize("each", ["A", "\n", "\u202e", "\U0001f600"])
@pytest.mark.parametrize("number", [MAX_DETAIL // 10, MAX_DETAIL, MAX_DETAIL + 1, 600_000])
def test_a_detail_is_cut_once(each, number):
    text = each * number
    detail = Check("code", "fail", text).detail
    assert len(detail) <= MAX_DETAIL
    assert detail.endswith("...") is (len(printable(text)) > MAX_DETAIL)
    assert Check("code", "fail", detail).detail == detail


@pytest.fixture(scope="module")
def verifiers():
    """Every verifier that takes an instant, on good evidence (those of quotes: test_dcap_formats.py)."""
    nvidia = nvidia_pki.NvidiaPki()
    device = nvidia.device()
    vek = amd_pki.vek("Milan", "vcek").public_bytes(Encoding.DER)
    report, token = amd_pki.report("Milan", "vcek", 5), azure_pki.token(azure_pki.token_claims(amd_pki.NOW, b"n" * 32))
    given = {"vek": vek, "crl": amd_pki.crl("Milan"), "roots": amd_pki.anchors()}
    rims = [nvidia.rim()]
    return {
        "snp": lambda now: snp.verify(report, now=now, **given),
        "gpu": lambda now: nvgpu.verify(device.report(), device.chain, rims=rims, now=now, roots=nvidia.roots),
        "gpus": lambda now: nvgpu.verify_devices(
            [device.evidence("a")], nvidia_pki.NONCE, rims=rims, now=now, roots=nvidia.roots
        ),
        "nras": lambda now: nras.verify(nvidia.token(), jwks=nvidia.jwks, nonce=None, now=now),
        "maa": lambda now: maa.verify(token, jwks=azure_pki.jwks("maa"), now=now),
    }


@pytest.mark.parametrize("kind", ["snp", "gpu", "gpus", "nras", "maa"])
def test_an_instant_without_a_date_in_utc_is_an_error_and_any_other_has_an_answer(verifiers, kind):
    for now in NO_INSTANTS:
        with pytest.raises(ConfigError, match=r"\Anow: "):
            verifiers[kind](now)
    for now in EDGES:
        found = verifiers[kind](now)
        checks = found if kind == "gpus" else found.checks
        assert "fail" in {each.result for each in checks}


def test_utc():
    noon = datetime(2026, 6, 1, 12, tzinfo=EAST)
    assert utc(noon) == noon and utc(noon).tzinfo is UTC
