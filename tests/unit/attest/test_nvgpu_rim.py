"""Reference measurements (signed XML): what is NVIDIA's word, what it is compared with, and hostile documents."""

import base64
import time
from datetime import UTC, datetime

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from lxml import etree

from cordon.attest import nvgpu
from cordon.attest.nvgpu import GpuPolicy, rim
from cordon.errors import ConfigError
from fakes.nvidia_pki import NONCE, NOW, NvidiaPki, certify, digest

ANY = GpuPolicy(**dict.fromkeys(GpuPolicy.__struct_fields__, "any"))
DS = "{http://www.w3.org/2000/09/xmldsig#}"


@pytest.fixture(scope="module")
def pki():
    return NvidiaPki()


@pytest.fixture(scope="module")
def gpu(pki):
    return pki.device("hopper")


@pytest.fixture
def judge(pki, gpu):
    def call(*rims, now=NOW, policy=ANY, **report):
        return nvgpu.verify(
            gpu.report(**report), gpu.chain, nonce=NONCE, rims=rims, now=now, policy=policy, roots=pki.roots
        )

    return call


def result(appraisal, code):
    return next(check for check in appraisal.checks if check.code == code)


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


def test_driver_and_vbios_match(judge, pki):
    appraisal = judge(pki.rim("driver"), pki.rim("vbios"), policy=msgspec.structs.replace(ANY, rim="required"))
    assert appraisal.verdict == "pass"
    assert "20 of 64 measurements" in result(appraisal, "rim_measurements").detail


def test_one_of_the_two_is_not_enough_where_they_are_required(judge, pki):
    wanted = msgspec.structs.replace(ANY, rim="required")
    for kind in ("driver", "vbios"):
        appraisal = judge(pki.rim(kind), policy=wanted)
        assert appraisal.verdict == "not_checked"
        assert result(appraisal, "rim_measurements").result == "pass"
        assert judge(pki.rim(kind)).verdict == "pass"  # not required: what is given holds


def test_a_measurement_that_differs(judge, pki, gpu):
    changed = gpu.measurements | {4: digest("rootkit"), 13: digest("rootkit")}
    appraisal = judge(pki.rim("driver"), pki.rim("vbios"), measurements=changed)
    assert failed(appraisal) == {"rim_measurements"}
    assert "driver 3, vbios 12" in result(appraisal, "rim_measurements").detail  # RIM index i is SPDM index i + 1
    assert appraisal.genuine  # the device is NVIDIA's; what runs on it is not
    assert appraisal.verdict == "fail"


def test_a_measurement_that_is_absent_differs(judge, pki, gpu):
    fewer = {index: value for index, value in gpu.measurements.items() if index != 4}
    assert failed(judge(pki.rim("driver"), measurements=fewer)) == {"rim_measurements"}


def test_inactive_measurements_are_not_compared(judge, pki):
    assert judge(pki.rim("driver", inactive=[20, 21, 22])).verdict == "pass"


def test_an_index_in_both(judge, pki):
    both = {index: [digest(f"hopper {index + 1}")] for index in (9, 10, 11)}
    appraisal = judge(pki.rim("driver"), pki.rim("vbios", golden=both))
    assert failed(appraisal) == {"rim_measurements"}
    assert "index 9 is in both" in result(appraisal, "rim_measurements").detail


@pytest.mark.parametrize(
    ("status", "verdict"), [(b"\x55", "pass"), (b"\xaa", "fail"), (None, "fail"), (b"\x01", "fail")]
)
def test_the_video_decoders_measurement_counts_unless_it_is_off(judge, pki, status, verdict):
    golden = {1: [digest("hopper 2")], 35: [digest("decoder on")]}
    assert judge(pki.rim("driver", golden=golden), opaque={11: status}).verdict == verdict


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "550.90.08"}, "RIM is for driver 550.90.08"),
        ({"product": "GB100"}, "RIM is for GB100, the device is a GH100"),
        ({"arch": "blackwell"}, "RIM is for GB100"),
    ],
)
def test_a_rim_for_something_else(judge, pki, change, why):
    appraisal = judge(pki.rim("driver", **change))
    assert failed(appraisal) == {"rim_driver"}
    assert why in result(appraisal, "rim_driver").detail
    assert result(appraisal, "rim_measurements").result == "not_checked"


def test_two_of_a_kind(judge, pki):
    appraisal = judge(pki.rim("driver"), pki.rim("driver"))
    assert failed(appraisal) == {"rim_driver"}
    assert "want one" in result(appraisal, "rim_driver").detail


def test_signed_by_nobody_known(judge, pki):
    other = NvidiaPki()
    for foreign in (
        {"links": [other.rim_signer, other.rim_ca, other.rim_root], "signer": other.rim_signer},
        {"links": [pki.rim_signer], "signer": pki.rim_signer},  # its issuer left out
        {"links": [pki.rim_root], "signer": pki.rim_root},
        {"links": [(x := certify("L4", pki.rim_signer, ca=False)), pki.rim_signer, pki.rim_ca], "signer": x},
        {"links": [(x := certify("CA as signer", pki.rim_ca)), pki.rim_ca, pki.rim_root], "signer": x},
        # The device root does not vouch for RIM files, nor the RIM root for devices.
        {"links": [(x := certify("L4", pki.ica, ca=False)), pki.ica, pki.identity, pki.root], "signer": x},
    ):
        appraisal = judge(pki.rim("driver", **foreign))
        assert failed(appraisal) == {"rim_driver"}, foreign
        assert "chain: " in result(appraisal, "rim_driver").detail
        assert result(appraisal, "rim_measurements").result == "not_checked"


def test_signature_of_another_key(judge, pki):
    stranger = certify("Stranger", None, ca=False)
    appraisal = judge(pki.rim("driver", signer=stranger, links=[pki.rim_signer, pki.rim_ca, pki.rim_root]))
    assert failed(appraisal) == {"rim_driver"}
    assert "signature: " in result(appraisal, "rim_driver").detail


def test_expired_rim_still_tells_what_differs(judge, pki, gpu):
    late = certify("Late", pki.rim_ca, ca=False, until=datetime(2025, 1, 1, tzinfo=UTC))
    old = pki.rim("driver", signer=late)
    appraisal = judge(old)
    assert failed(appraisal) == {"rim_driver"}
    assert result(appraisal, "rim_driver").clock
    assert result(appraisal, "rim_measurements").result == "pass"
    both = judge(old, measurements=gpu.measurements | {1: digest("x")})
    assert failed(both) == {"rim_driver", "rim_measurements"}


def test_a_curve_that_is_not_nvidias(judge, pki):
    weak = certify("Weak", pki.rim_ca, ca=False, curve=ec.SECP256R1())
    assert failed(judge(pki.rim("driver", signer=weak))) == {"rim_driver"}


# -- tampering with the document -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mend",
    [
        lambda text: text.replace(digest("hopper 1").hex().encode(), digest("rootkit").hex().encode()),
        lambda text: text.replace(b'index="60" active="False"', b'index="60" active="True"'),
        lambda text: text.replace(b'colloquialVersion="550.90.06"', b'colloquialVersion="550.90.07"'),
        lambda text: text.replace(b"</ns0:Payload>", b" </ns0:Payload>"),
        lambda text: text.replace(b"<ds:SignatureValue>", b"<ds:SignatureValue>AAAA"),
        lambda text: text.replace(b"<ds:DigestValue>", b"<ds:DigestValue>AAAA"),
        lambda text: text.replace(b"<ds:DigestValue>", b"<ds:DigestValue>\xc3\xbc"),
    ],
)
def test_a_changed_document(judge, pki, mend):
    changed = pki.rim("driver", version="550.90.06", mend=mend)
    original = pki.rim("driver", version="550.90.06")
    assert mend(original) != original  # the change is one
    appraisal = judge(changed)
    assert "rim_driver" in failed(appraisal)
    assert "signature: " in result(appraisal, "rim_driver").detail
    assert result(appraisal, "rim_measurements").result == "not_checked"


def test_every_changed_byte_fails_or_means_the_same(pki):
    """Where a change is accepted (white space inside base64), what is read is what was signed."""
    good = pki.rim("driver", inactive=[])
    wanted = rim.read(good, pki.rim_root.certificate, NOW)
    assert not wanted.faults
    accepted = 0
    for position in range(0, len(good), 23):
        changed = good[:position] + bytes([good[position] ^ 0x04]) + good[position + 1 :]
        try:
            read = rim.read(changed, pki.rim_root.certificate, NOW)
        except ConfigError:
            continue
        if not read.faults:
            accepted += 1
            assert read == wanted, position
    assert accepted <= 3


def wrapped(good, pki):
    """Signature wrapping: the signed document is kept somewhere, and another one stands where it is read."""
    evil = good.replace(digest("hopper 1").hex().encode(), digest("rootkit").hex().encode())
    root, fake = etree.fromstring(good), etree.fromstring(evil)
    signature = root[-1]

    inside = etree.fromstring(evil)  # the signed document inside the signature's Object
    inside[-1].append(etree.Element(f"{DS}Object"))
    inside[-1][-1].append(etree.fromstring(good))
    yield etree.tostring(inside)

    payload = etree.fromstring(good)  # a second payload before the signed one
    payload.insert(2, fake[2])
    yield etree.tostring(payload)

    outside = etree.Element(root.tag, root.attrib, nsmap=root.nsmap)  # the signed one as a child
    for child in etree.fromstring(evil)[:-1]:
        outside.append(child)
    outside.append(etree.fromstring(good))
    yield etree.tostring(outside)

    two = etree.fromstring(evil)  # two signatures
    two.append(etree.fromstring(etree.tostring(signature)))
    yield etree.tostring(two)

    nested = etree.fromstring(evil)  # the good document as a child of the payload, the signature refers to it by id
    nested[2].append(etree.fromstring(good))
    yield etree.tostring(nested)

    yield pki.rim("driver", xml={"uri": "#x"}, edit=lambda text: text.replace('tagId="1"', 'tagId="1" Id="x"'))


def test_signature_wrapping(judge, pki):
    good = pki.rim("driver")
    assert judge(good).verdict == "pass"
    seen = 0
    for attack in wrapped(good, pki):
        seen += 1
        with pytest.raises(ConfigError, match=r"^rim_format: "):
            judge(attack)
    assert seen == 6


@pytest.mark.parametrize(
    "method", ["http://www.w3.org/2001/04/xmldsig-more#hmac-sha384", "http://www.w3.org/2000/09/xmldsig#ecdsa-sha1"]
)
def test_other_algorithms(judge, pki, method):
    with pytest.raises(ConfigError, match=r"^rim_format: .*one shape"):
        judge(pki.rim("driver", xml={"method": method}))


def test_a_key_value_beside_the_chain_is_not_used(judge, pki):
    """Whoever signs with a key of his own and says so in KeyValue is judged by the certificate all the same."""
    stranger = certify("Stranger", None, ca=False)
    spki = stranger.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    value = b'<d:DEREncodedKeyValue xmlns:d="http://www.w3.org/2009/xmldsig11#">%b</d:DEREncodedKeyValue></ds:KeyInfo>'

    def add(text):
        return text.replace(b"</ds:KeyInfo>", value % base64.b64encode(spki))

    forged = pki.rim("driver", signer=stranger, links=[pki.rim_signer, pki.rim_ca], mend=add)
    assert failed(judge(forged)) == {"rim_driver"}


def laughs(depth):
    """Ten to the power of ``depth`` times the same word, if entities were expanded."""
    lines = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, depth))
    return f"<!DOCTYPE a [{lines}]><a>&a{depth - 1};</a>".encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not xml",
        b"<a/>",
        b"<a>",
        b"\xff\xfe<\0a\0/\0>\0",
        "<a>ü</a>".encode("latin-1"),
        b"<a>\0</a>",
        laughs(20),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:1/">]><a>&x;</a>',
        b"<?xml version='1.0' encoding='utf-7'?>+ADwAIQ-DOCTYPE a+AD4APA-a/+AD4-",
        b"<a><![CDATA[x]]></a>",
        b"<?pi?><a/>",
        b"<a><?pi x?></a>",
        b"<a>" * 100_000,
        b"<a>" * 200 + b"</a>" * 200,
        b"<a " + b" ".join(b'x%d=""' % n for n in range(50_000)) + b"/>",
        b"<" + b"a" * 900_000 + b"/>",
        b"a" * (rim.MAX_RIM + 1),
        b"<a xmlns='http://standards.iso.org/iso/19770/-2/2015/schema.xsd'/>",
    ],
)
def test_hostile_documents_are_refused_in_no_time(judge, data):
    begin = time.perf_counter()
    with pytest.raises(ConfigError, match=r"^rim_format: ") as caught:
        judge(data)
    assert time.perf_counter() - begin < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("<ns0:Meta", "<ns0:Other"),
        lambda text: text.replace('product="GH100"', 'product="GH200"'),
        lambda text: text.replace('colloquialVersion="550.90.07"', 'colloquialVersion="x"'),
        lambda text: text.replace('index="3"', 'index="4"'),
        lambda text: text.replace('index="3"', 'index="-3"'),
        lambda text: text.replace('active="True"', 'active="yes"', 1),
        lambda text: text.replace('alternatives="2"', 'alternatives="3"', 1),
        lambda text: text.replace('alternatives="2"', 'alternatives="0"', 1),
        lambda text: text.replace(digest("hopper 1").hex(), "00"),
        lambda text: text.replace('active="True"', 'active="False"'),
        lambda text: text.replace("<ns0:Resource", "<ns0:Thing", 1),
    ],
)
def test_signed_documents_that_mean_nothing(judge, pki, edit):
    def changed(text):
        assert edit(text) != text
        return edit(text)

    with pytest.raises(ConfigError, match=r"^rim_format: "):
        judge(pki.rim("driver", edit=changed))


def test_certificates_that_cannot_be_read(judge, pki):
    for mend in (
        lambda text: text.replace(b"<ds:X509Certificate>MII", b"<ds:X509Certificate>AAA", 1),
        lambda text: text.replace(b"<ds:X509Certificate>MII", b"<ds:X509Certificate>!!!", 1),
        lambda text: text.replace(b"ds:X509Data", b"ds:Y509Data"),
    ):
        with pytest.raises(ConfigError, match=r"^rim_format: "):
            judge(pki.rim("driver", mend=mend))


def test_comments_are_not_signed_and_not_read(judge, pki):
    noted = pki.rim("driver", mend=lambda text: text.replace(b"<ns0:Payload>", b"<ns0:Payload><!-- 96.00 -->"))
    assert judge(noted).verdict == "pass"


def test_too_many_rims(judge, pki):
    with pytest.raises(ConfigError, match=r"^rim_format: 33 RIM files"):
        judge(*[b""] * 33)
