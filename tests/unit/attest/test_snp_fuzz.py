"""Bytes that nobody meant: a ConfigError or a verdict that is not genuine, and nothing else."""

import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.attest import snp
from cordon.errors import ConfigError
from fakes import amd_pki as amd

FEW = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def spoilt(draw, data):
    """``data`` with bytes changed, cut out, doubled or put in."""
    spoilt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(spoilt)))
        how = draw(st.sampled_from(["change", "cut", "end", "double", "put"]))
        size = draw(st.integers(1, 40))
        if how == "change" and at < len(spoilt):
            spoilt[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del spoilt[at : at + size]
        elif how == "end":
            del spoilt[at:]
        elif how == "double":
            spoilt[at:at] = spoilt[at : at + size]
        else:
            spoilt[at:at] = draw(st.binary(max_size=40))
    return bytes(spoilt)


def evidence(product="Milan", signer="vcek", version=5):
    return amd.evidence(product, signer, version)


def ders(pem):
    """The certificates in ``pem``: text around them and line ends may change without changing what is judged."""
    return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(pem)]


def rejected(report, rest):
    try:
        appraisal = snp.verify(report, **rest)
    except ConfigError as error:
        code, _, text = str(error).partition(": ")
        assert code.endswith("_format") and text
        return True
    return not appraisal.genuine


EVIDENCE = evidence()
CHAIN = amd.pem(amd.anchor("Milan").ask, amd.anchor("Milan").ark)


@given(st.binary(max_size=1500) | st.binary(min_size=1184, max_size=1184) | spoilt(EVIDENCE.report))
@FEW
def test_report(data):
    assert data == EVIDENCE.report or rejected(data, EVIDENCE.rest)


@given(st.binary(max_size=300) | spoilt(EVIDENCE.rest["vek"]))
@FEW
def test_vek(data):
    assert data == EVIDENCE.rest["vek"] or rejected(EVIDENCE.report, {**EVIDENCE.rest, "vek": data})


@given(st.binary(max_size=300) | spoilt(EVIDENCE.rest["crl"]))
@FEW
def test_crl(data):
    assert data == EVIDENCE.rest["crl"] or rejected(EVIDENCE.report, {**EVIDENCE.rest, "crl": data})


@given(st.binary(max_size=300) | spoilt(CHAIN))
@FEW
def test_chain(data):
    assert rejected(EVIDENCE.report, {**EVIDENCE.rest, "chain": data}) or sorted(ders(data)) == sorted(ders(CHAIN))


@given(
    st.dictionaries(
        st.sampled_from([*amd.vek_extensions("Turin", "vlek"), "4", "9"]), st.binary(max_size=70), min_size=1
    )
)
@settings(FEW, max_examples=60)
def test_extensions_that_amd_would_have_to_sign(values):
    """Not reachable without AMD's key; still nothing but a verdict may come out."""
    vek = amd.vek("Milan", "vcek", extensions=values).public_bytes(Encoding.DER)
    snp.verify(EVIDENCE.report, **{**EVIDENCE.rest, "vek": vek})


@pytest.mark.parametrize("product", amd.PRODUCTS)
@pytest.mark.parametrize("signer", amd.SIGNERS)
def test_every_single_byte_change_of_a_report_is_rejected(product, signer):
    found = evidence(product, signer, {"Milan": 2, "Genoa": 3, "Turin": 5}[product])
    chance = random.Random(product + signer)
    for index in range(len(found.report)):
        changed = bytearray(found.report)
        changed[index] ^= chance.randrange(1, 256)
        assert rejected(bytes(changed), found.rest), f"byte {index:#x}"


def test_every_single_byte_change_of_a_crl_is_rejected():
    crl = EVIDENCE.rest["crl"]
    chance = random.Random(2)
    for index in range(len(crl)):
        changed = bytearray(crl)
        changed[index] ^= chance.randrange(1, 256)
        assert rejected(EVIDENCE.report, {**EVIDENCE.rest, "crl": bytes(changed)}), f"byte {index:#x}"


def test_no_vek_fits_another_machine():
    found = {(product, signer): evidence(product, signer) for product in amd.PRODUCTS for signer in amd.SIGNERS}
    for one in found:
        for other in found:
            assert rejected(found[one].report, found[other].rest) == (one != other)
