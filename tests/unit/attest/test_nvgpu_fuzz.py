"""Whatever bytes come: a verdict, or a ConfigError of one line with a stable code; nothing else, and no pass."""

import base64
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.attest import nvgpu
from cordon.attest.nvgpu import chain, nras, rim, spdm
from cordon.errors import ConfigError
from fakes.nvidia_pki import CHIPS, NONCE, NOW, NvidiaPki

PKI = NvidiaPki()
DEVICES = {arch: PKI.device(arch) for arch in CHIPS}
REPORTS = {arch: each.report() for arch, each in DEVICES.items()}
CHAINS = {arch: each.chain for arch, each in DEVICES.items()}
RIM, TOKEN = PKI.rim("driver"), PKI.token()
CODE = re.compile(
    r"^(report_format|report_version|chain_format|rim_format|token_format|jwks_format|evidence_format): [^\n]+$"
)
FAST = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """``good`` cut, extended, with a stretch replaced, doubled or filled, or something else altogether."""

    def edit(args):
        at, length, filler, kind = args
        at, length = at % (len(good) + 1), length % 300
        return {
            "replace": good[:at] + filler + good[at + len(filler) :],
            "insert": good[:at] + filler + good[at:],
            "remove": good[:at] + good[at + length :],
            "cut": good[:at],
            "double": good[:at] + good[at : at + length] * 2 + good[at + length :],
            "ones": good[:at] + b"\xff" * min(length, len(good) - at) + good[at + length :],
            "other": filler,
        }[kind]

    kinds = st.sampled_from(["replace", "insert", "remove", "cut", "double", "ones", "other"])
    return st.tuples(st.integers(0, 1 << 20), st.integers(1, 300), st.binary(min_size=1, max_size=40), kinds).map(edit)


def judged(call, *args, **options):
    """The verdict; None for a ConfigError as it should be."""
    try:
        return call(*args, **options)
    except ConfigError as error:
        assert CODE.match(str(error)), str(error)
        assert len(str(error)) < 400
        return None


@FAST
@given(data=st.data(), arch=st.sampled_from(list(CHIPS)))
def test_reports(data, arch):
    report = data.draw(mutated(REPORTS[arch]))
    appraisal = judged(nvgpu.verify, report, CHAINS[arch], nonce=NONCE, now=NOW, roots=PKI.roots)
    assert appraisal is None or not appraisal.genuine or report == REPORTS[arch]


@FAST
@given(data=st.data(), arch=st.sampled_from(list(CHIPS)))
def test_chains(data, arch):
    links = DEVICES[arch].links
    place = data.draw(st.integers(0, 3))
    raw = data.draw(mutated(links[place].certificate.public_bytes(chain.Encoding.DER)))
    text = [link.certificate.public_bytes(chain.Encoding.PEM) for link in links]
    text[place] = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(raw) + b"-----END CERTIFICATE-----\n"
    given_chain = data.draw(st.one_of(st.just(b"".join(text)), mutated(CHAINS[arch])))
    appraisal = judged(nvgpu.verify, REPORTS[arch], given_chain, nonce=NONCE, now=NOW, roots=PKI.roots)
    if appraisal is not None and appraisal.genuine:
        # what is left out may be the root; what is read of the others is what was issued
        wanted = [link.certificate for link in links]
        assert [link.certificate for link in chain.decode(given_chain)] in (wanted, wanted[:4])


@FAST
@given(data=st.data())
def test_rims(data):
    document = data.draw(mutated(RIM))
    read = judged(rim.read, document, PKI.rim_root.certificate, NOW)
    good = rim.read(RIM, PKI.rim_root.certificate, NOW)
    assert read is None or read.faults or read.golden == good.golden


@FAST
@given(data=st.data())
def test_tokens(data):
    token = data.draw(mutated(TOKEN))
    appraisal = judged(nras.verify, token, jwks=PKI.jwks, nonce=NONCE, now=NOW)
    assert appraisal is None or not appraisal.genuine or json.loads(token) == json.loads(TOKEN)


@FAST
@given(data=st.data())
def test_key_sets(data):
    judged(nras.verify, TOKEN, jwks=data.draw(mutated(PKI.jwks)), nonce=NONCE, now=NOW)


CLAIM = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(FAST, max_examples=80)
@given(data=st.data())
def test_signed_claims_of_any_type(data):
    """The service's own key signs nonsense: still a verdict."""
    names = ["exp", "nbf", "iat", "iss", "eat_nonce", "ueid", "hwmodel", "measres", "secboot", "dbgstat"]
    names += ["x-nvidia-gpu-attestation-report-cert-chain", "x-nvidia-gpu-driver-version", "x-nvidia-gpu-arch-check"]
    name, value = data.draw(st.sampled_from(names)), data.draw(CLAIM)
    token = PKI.token(
        {"GPU-0": {name: value}}, {data.draw(st.sampled_from(["submods", "exp", "eat_nonce", "iss"])): value}
    )
    assert judged(nras.verify, token, jwks=PKI.jwks, nonce=NONCE, now=NOW).verdict in ("fail", "not_checked")


@FAST
@given(data=st.binary(max_size=300) | st.text(max_size=300))
def test_anything_as_a_report_or_a_chain(data):
    judged(nvgpu.decode_report, data)
    judged(chain.decode, data)


@FAST
@given(data=st.binary(max_size=300))
def test_anything_as_evidence(data):
    judged(nvgpu.read_evidence, data)
    assert nvgpu.verify_devices([{"uuid": "a", "arch": "b", "report": data.hex(), "chain": "c"}], NONCE, now=NOW)


@pytest.mark.parametrize("size", [0, 37, 44, 64 * 1024, 64 * 1024 + 1])
def test_sizes(size):
    judged(spdm.parse, bytes(size))
    header = b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60\x00\x00\xff\xff\xff\xff"
    judged(spdm.parse, (header + b"\xff" * size)[: max(size, len(header))])


def test_huge_tlvs():
    """Lengths that promise more than there is, everywhere a length stands."""
    report = REPORTS["hopper"]
    for position in range(37, len(report) - 1):
        if report[position : position + 2] in (b"\x33\x00", b"\x30\x00", b"\x0a\x00", b"\x08\x00"):
            changed = report[:position] + b"\xff\xff" + report[position + 2 :]
            assert judged(spdm.parse, changed) is None or changed[position - 1 : position] != b"\x01"
