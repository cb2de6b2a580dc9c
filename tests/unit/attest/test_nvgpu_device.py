"""One device's report, by a made-up vendor: every product passes, and every reason to refuse is met once."""

import base64
import struct
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cordon.attest import nvgpu
from cordon.attest.nvgpu import GpuPolicy, chain, device, spdm
from cordon.errors import ConfigError
from fakes.nvidia_pki import CHIPS, NONCE, NOW, NvidiaPki, certify, digest

ANY = GpuPolicy(**dict.fromkeys(GpuPolicy.__struct_fields__, "any"))


@pytest.fixture(scope="module")
def pki():
    return NvidiaPki()


@pytest.fixture(scope="module")
def devices(pki):
    return {arch: pki.device(arch) for arch in CHIPS}


@pytest.fixture
def judge(pki, devices):
    def call(arch="hopper", report=None, chain=None, policy=ANY, nonce=NONCE, now=NOW, rims=(), roots=None):
        given = devices[arch]
        return nvgpu.verify(
            given.report() if report is None else report,
            given.chain if chain is None else chain,
            nonce=nonce,
            rims=rims,
            now=now,
            policy=policy,
            roots=roots or pki.roots,
        )

    return call


def pem(*links):
    return b"".join(link.certificate.public_bytes(chain.Encoding.PEM) for link in links)


def results(appraisal):
    return {check.code: check.result for check in appraisal.checks}


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


@pytest.mark.parametrize("arch", CHIPS)
def test_a_report_of_each_product_passes(judge, pki, arch):
    rims = [pki.rim("vbios", arch)] + ([] if arch == "ls10" else [pki.rim("driver", arch)])
    appraisal = judge(
        arch, rims=rims, policy=msgspec.structs.replace(ANY, rim="required", fwid="required", arch=(arch,))
    )
    assert appraisal.type == "nvgpu"
    assert appraisal.genuine
    assert appraisal.verdict == "pass"
    assert appraisal.claims["arch"] == arch
    assert appraisal.claims["serial"] == "0000000000000001"
    assert appraisal.claims["nonce"] == NONCE.hex()
    assert appraisal.claims["measurements"]["1"] == digest(f"{arch} 1").hex()


def test_without_a_policy_it_is_genuine_and_not_a_pass(judge):
    appraisal = judge(policy=None)
    assert appraisal.genuine
    assert appraisal.verdict == "not_checked"
    asked = (
        "arch",
        "driver_version",
        "vbios_version",
        "mode",
        "device_id",
        "cc_mode",
        "rim_driver",
        "rim_measurements",
    )
    assert {results(appraisal)[code] for code in asked} == {"not_checked"}


def test_claims_say_what_the_report_says(judge, devices):
    claims = judge().claims
    assert claims["driver_version"] == "550.90.07"
    assert claims["vbios_version"] == "96.00.9F.00.01"
    assert claims["mode"] == "spt"
    assert claims["board"] == {"project": "1010", "project_sku": "0200", "chip_sku": "882"}
    assert claims["fwid"] == devices["hopper"].fwid.hex()
    assert claims["device_id"] == devices["hopper"].links[1].certificate.fingerprint(hashes.SHA256()).hex()
    assert claims["ueid"] == str(devices["hopper"].links[0].certificate.serial_number)


def test_the_root_may_be_left_out_of_the_chain(judge, devices):
    assert judge(chain=pem(*devices["hopper"].links[:4])).verdict == "pass"


def test_report_and_chain_are_read_in_every_encoding(judge, devices):
    report, certificates = devices["hopper"].report(), devices["hopper"].chain
    for text in (report.hex().encode(), report.hex().upper().encode() + b"\n", base64.b64encode(report)):
        assert nvgpu.decode_report(text) == report
        assert judge(report=text, chain=base64.b64encode(certificates)).verdict == "pass"


# -- the vendor's hardware signed this -------------------------------------------------------------------------------


def test_answers_to_another_request(judge, devices):
    """A signature over part of the measurements, or asked for in another way, is not the evidence that is wanted."""
    changes = (
        {"request": b"\x11\xe0\x01\x01"},  # one measurement only
        {"request": b"\x11\xe0\x00\xff"},  # no signature asked for
        {"slot": 1},
        {"head": b"\x11\x60\x00\x01"},
        {"own_nonce": bytes(32)},
    )
    for change in changes:
        appraisal = judge(report=devices["hopper"].report(**change))
        assert failed(appraisal) == {"report_request"}, change
        assert not appraisal.genuine


def test_signed_by_another_key(judge, devices, pki):
    other = devices["hopper"].report(key=ec.generate_private_key(ec.SECP384R1()))
    assert failed(judge(report=other)) == {"report_signature"}
    assert failed(judge(chain=pki.device("hopper").chain)) == {"report_signature"}


def test_another_vendors_root(judge, devices):
    assert failed(judge(roots=NvidiaPki().roots)) == {"report_chain"}


def test_the_embedded_root_is_the_default(devices):
    appraisal = nvgpu.verify(devices["hopper"].report(), devices["hopper"].chain, now=NOW)
    assert failed(appraisal) == {"report_chain"}


def chains(pki):
    """(what is wrong, links, extra failed codes): the leaf first, and its key signs the report."""
    good = pki.device("hopper").links
    leaf, brom, ica, identity, root = good
    name, bname = "GH100 A01 GSP FMC LF", "GH100 A01 GSP BROM"

    def under(issuer, **settings):
        return certify(name, issuer, ca=False, **settings)

    yield "order", [leaf, ica, brom, identity, root], set()
    yield "gap", [leaf, brom, identity, root], set()
    yield "too short", [leaf, brom, ica], set()
    yield "too long", [under(x := certify("Sub CA", brom)), x, brom, ica, identity, root], set()
    yield "foreign root sent along", [leaf, brom, ica, identity, certify("Test Device Identity CA", None)], set()
    yield "leaf is a CA", [certify(name, brom), brom, ica, identity, root], set()
    yield "leaf may not sign", [under(brom, usage=False), brom, ica, identity, root], set()
    bad = certify(bname, ica, usage=False)
    yield "issuer may not issue", [under(bad), bad, ica, identity, root], set()
    bad = certify(bname, ica, constraints=False)
    yield "issuer is no CA", [under(bad), bad, ica, identity, root], set()
    bad = certify("Test Provisioner ICA", identity, path_length=0)
    yield "path length", [under(y := certify(bname, bad)), y, bad, identity, root], set()
    yield "curve", [under(brom, curve=ec.SECP256R1()), brom, ica, identity, root], {"report_signature"}
    yield "hash", [under(brom, algorithm=hashes.SHA256()), brom, ica, identity, root], set()
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    yield "critical", [under(brom, extensions=((odd, True),)), brom, ica, identity, root], set()
    yield "issuer's name", [under(brom, issuer_name="Other"), brom, ica, identity, root], set()
    twin = certify(bname, ica)  # same name, another key
    yield "issuer's key", [leaf, twin, ica, identity, root], set()


def test_chains_that_do_not_lead_to_the_root(judge, devices, pki):
    seen = 0
    for what, links, extra in chains(pki):
        given = devices["hopper"]
        signer = links[0].key if links[0].key.curve.name == "secp384r1" else given.links[0].key
        report = given.report(key=signer, opaque={20: None})
        appraisal = judge(report=report, chain=pem(*links))
        assert failed(appraisal) == {"report_chain"} | extra, what
        assert not appraisal.genuine, what
        seen += 1
    assert seen == 15


@pytest.mark.parametrize("now", [datetime(2023, 12, 31, tzinfo=UTC), datetime(2034, 1, 2, tzinfo=UTC)])
def test_outside_the_certificates_time(judge, now):
    appraisal = judge(now=now)
    assert failed(appraisal) == {"report_time"}
    assert not appraisal.genuine
    assert all(check.clock for check in appraisal.checks if check.result == "fail")


def test_no_time_at_all(judge, devices, pki):
    late = pki.device("hopper", since=NOW + timedelta(days=1), until=NOW + timedelta(days=2))
    early = certify("GH100 A01 GSP BROM", pki.ica, until=NOW - timedelta(days=1))
    appraisal = judge(report=late.report(), chain=pem(late.links[0], early, *late.links[2:]))
    assert {"report_time", "report_chain"} <= failed(appraisal)
    assert "no time" in next(check.detail for check in appraisal.checks if check.code == "report_time")


def test_another_firmware_than_the_key_was_certified_for(judge, devices):
    for arch in ("hopper", "blackwell"):
        appraisal = judge(arch, report=devices[arch].report(opaque={20: digest("other")}))
        assert failed(appraisal) == {"fwid"}
        assert not appraisal.genuine
    # Blackwell's certificate lists an all-zero id as well: it stands for none.
    assert failed(judge("blackwell", report=devices["blackwell"].report(opaque={20: bytes(48)}))) == {"fwid"}


def test_a_firmware_id_that_the_certificate_lacks(judge, devices, pki):
    bare = pki.device("hopper", extensions=())
    assert failed(judge(report=bare.report(), chain=bare.chain)) == {"fwid"}
    assert judge(report=bare.report(), chain=bare.chain).claims["serial"] is None


def test_an_old_driver_states_no_firmware_id(judge, devices):
    old = devices["hopper"].report(opaque={20: None, 34: None, 36: None})
    assert judge(report=old).genuine
    assert judge(report=old).verdict == "pass"
    wanted = judge(report=old, policy=msgspec.structs.replace(ANY, fwid="required"))
    assert wanted.genuine
    assert wanted.verdict == "not_checked"


def test_serial_of_another_chip_is_no_serial(judge, pki):
    other = x509.SubjectAlternativeName(
        [x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), b"\x0c\x1dNVIDIA:GB100:0000000000000001")]
    )
    odd = pki.device("hopper", extensions=((other, False),))
    assert judge(report=odd.report(opaque={20: None}), chain=odd.chain).claims["serial"] is None


# -- fresh, and what the policy wants --------------------------------------------------------------------------------


def test_nonce(judge):
    assert failed(judge(nonce=bytes(32))) == {"nonce"}
    assert judge(nonce=bytes(32)).genuine  # genuine, and an answer to something else
    assert failed(judge(nonce=bytes(32), policy=None)) == {"nonce"}
    unasked = judge(nonce=None)
    assert results(unasked)["nonce"] == "not_checked"
    assert unasked.verdict == "not_checked"
    with pytest.raises(ConfigError, match=r"^nonce_format: "):
        judge(nonce=b"short")


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("arch", ("hopper",), ("blackwell", "ls10")),
        ("driver_version", ("1.0", "550.90.07"), ("550.90",)),
        ("vbios_version", ("96.00.9F.00.01",), ("96.00.9F.00.02",)),
        ("mode", ("spt", "mpt"), ("ppcie",)),
    ],
)
def test_allow_sets_are_exact(judge, field, good, bad):
    assert judge(policy=msgspec.structs.replace(ANY, **{field: good})).verdict == "pass"
    refused = judge(policy=msgspec.structs.replace(ANY, **{field: bad}))
    assert failed(refused) == {field}
    assert refused.genuine
    assert refused.verdict == "fail"


def test_device_allow_set(judge, devices):
    mine = judge().claims["device_id"]
    assert judge(policy=msgspec.structs.replace(ANY, device_id=(mine,))).verdict == "pass"
    assert failed(judge(policy=msgspec.structs.replace(ANY, device_id=("0" * 64,)))) == {"device_id"}


@pytest.mark.parametrize("field", ["ocsp", "cc_mode", "rim"])
def test_what_cannot_be_shown_is_not_a_pass(judge, field):
    appraisal = judge(policy=msgspec.structs.replace(ANY, **{field: "required"}))
    assert appraisal.genuine
    assert appraisal.verdict == "not_checked"


@pytest.mark.parametrize(
    ("opaque", "mode"),
    [
        ({36: b"\x00\x00"}, "spt"),
        ({36: b"\x01\x00"}, "mpt"),
        ({36: b"\x02\x00", 21: b"\xaa"}, "ppcie"),
        ({36: None, 21: b"\xaa"}, "ppcie"),
        ({36: None}, None),
        ({36: b"\x02\x00"}, "contradictory"),
        ({36: b"\x00\x00", 21: b"\xaa"}, "contradictory"),
        ({36: b"\x09\x00"}, "unknown"),
    ],
)
def test_mode(judge, devices, opaque, mode):
    wanted = msgspec.structs.replace(ANY, mode=("spt", "mpt", "ppcie"))
    appraisal = judge(report=devices["hopper"].report(opaque=opaque), policy=wanted)
    assert appraisal.claims["mode"] == mode
    expected = "not_checked" if mode is None else "pass" if mode in ("spt", "mpt", "ppcie") else "fail"
    assert appraisal.verdict == expected


def test_a_switch_is_not_asked_for_what_it_does_not_state(judge, pki):
    wanted = msgspec.structs.replace(
        ANY, driver_version=("1.0",), mode=("spt",), fwid="required", vbios_version=("96.10.55.00.01",), rim="required"
    )
    assert judge("ls10", policy=wanted, rims=[pki.rim("vbios", "ls10")]).verdict == "pass"


def test_all_failures_are_reported_together(judge, devices):
    other = devices["hopper"].report(key=ec.generate_private_key(ec.SECP384R1()), opaque={20: digest("x")})
    wanted = msgspec.structs.replace(ANY, arch=("ls10",), driver_version=("1.0",))
    appraisal = judge(report=other, nonce=bytes(32), now=datetime(2040, 1, 1, tzinfo=UTC), policy=wanted)
    assert failed(appraisal) == {"report_signature", "report_time", "fwid", "nonce", "arch", "driver_version"}


@pytest.mark.parametrize(
    "change",
    [
        {"arch": ("ampere",)},
        {"arch": ()},
        {"driver_version": ("5*",)},
        {"cc_mode": False},
        {"count": 0},
        {"rims": "any"},
    ],
)
def test_policies_that_mean_nothing_are_refused(change):
    fields = dict.fromkeys(GpuPolicy.__struct_fields__, "any") | change
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, GpuPolicy, strict=True)


@pytest.mark.parametrize("field", GpuPolicy.__struct_fields__)
def test_every_policy_field_is_required(field):
    fields = dict.fromkeys(set(GpuPolicy.__struct_fields__) - {field}, "any")
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(fields, GpuPolicy, strict=True)


# -- what cannot be parsed -------------------------------------------------------------------------------------------


def block(index=1, kind=1, size=51, value_size=48, value=bytes(48)):
    return struct.pack("<BBHBH", index, kind, size, 1, value_size) + value


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"request": b"\x12\xe0\x01\xff"}, "report_version"),
        ({"head": b"\x12\x60\x00\x00"}, "report_version"),
        ({"opaque": {34: b"\x02\x00"}}, "report_version"),
        ({"request": b"\x11\x84\x01\xff"}, "report_format"),
        ({"head": b"\x11\x7f\x00\x00"}, "report_format"),
        ({"blocks": 63}, "report_format"),
        ({"record": block() + block(), "blocks": 1}, "report_format"),  # index 1 twice
        ({"record": block(index=0), "blocks": 1}, "report_format"),
        ({"record": block(kind=2), "blocks": 1}, "report_format"),
        ({"record": block(size=50), "blocks": 1}, "report_format"),
        ({"record": block(size=0xFFFF, value_size=0xFFFC), "blocks": 1}, "report_format"),
        ({"record": block()[:5], "blocks": 1}, "report_format"),
        ({"tlv": b"\x03\x00\x02\x00a"}, "report_format"),
        ({"tlv": b"\x03\x00"}, "report_format"),
        ({"tlv": b"\x03\x00\xff\xff" + bytes(16)}, "report_format"),
        ({"tlv": b"\x03\x00\x01\x001" * 2}, "report_format"),  # driver version twice
        ({"opaque": {3: b"550\n90"}}, "report_format"),
        ({"opaque": {3: b"\xff\xfe"}}, "report_format"),
        ({"opaque": {6: bytes(7)}}, "report_format"),
        ({"opaque": {99: bytes(0xFFFF)}}, "report_format"),
    ],
)
def test_reports_that_cannot_be_parsed(judge, devices, change, code):
    try:
        report = devices["hopper"].report(**change)
    except struct.error:  # opaque data beyond its 16-bit length: put together by hand
        report = bytes(spdm.MAX_REPORT + 1)
    with pytest.raises(ConfigError, match=rf"^{code}: ") as caught:
        judge(report=report)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "report", [b"", b"\x11", b"\x11\xe0" + bytes(60), b"zz", "ü", b"11e0", b"\x11" * 70000, b"1" * 300000]
)
def test_no_report(judge, report):
    with pytest.raises(ConfigError, match=r"^report_(format|version): "):
        judge(report=report)


def test_truncated_and_extended(judge, devices):
    whole = devices["ls10"].report()
    for cut in (*range(0, len(whole), 61), len(whole) - 1):
        with pytest.raises(ConfigError, match=r"^report_(format|version): "):
            spdm.parse(whole[:cut])
    with pytest.raises(ConfigError, match=r"^report_format: "):
        judge("ls10", report=whole + b"\0")


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"no chain",
        "ü",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\n" * 9,
        b"-----BEGIN" + b"A" * 100000,
        b"A" * 200000,
    ],
)
def test_no_chain(judge, given):
    with pytest.raises(ConfigError, match=r"^chain_format: "):
        judge(chain=given)


def test_a_certificate_without_a_positive_serial_number(judge, devices):
    leaf = devices["hopper"].links[0].certificate
    number = leaf.serial_number
    raw, serial = (
        leaf.public_bytes(chain.Encoding.DER),
        number.to_bytes(number.bit_length() // 8 + 1, "big"),
    )  # as in DER
    negative = raw.replace(serial, bytes([0x80 | serial[0] & 0x3F]) + serial[1:])  # 0xff could begin no DER number
    assert negative != raw
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(negative) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(ConfigError, match=r"^chain_format: .*serial number"):
        judge(chain=text + pem(*devices["hopper"].links[1:]))


@pytest.mark.parametrize(
    "value", ["3003020101", "30820001", "3080", "04", "308400000000", "3004a6020400", "3004300206ff", "05000500"]
)
def test_firmware_id_extensions_that_cannot_be_parsed(judge, pki, value):
    for oid in ("2.23.133.5.4.1", "2.23.133.5.4.1.1"):
        dice = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes.fromhex(value))
        odd = pki.device("hopper", extensions=((dice, False),))
        if value in ("3003020101", "3004300206ff") and oid.endswith(".1.1"):  # a DiceTcbInfo without firmware ids
            assert failed(judge(report=odd.report(), chain=odd.chain)) == {"fwid"}
            continue
        with pytest.raises(ConfigError, match=r"^chain_format: "):
            judge(report=odd.report(), chain=odd.chain)


# -- tampering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", CHIPS)
def test_no_byte_of_a_report_can_be_changed(devices, arch):
    """Request and response alike. Only the signature is asked here: it is the one check that covers them all."""
    report = devices[arch].report()
    leaf = chain.decode(devices[arch].chain)[0]
    for position in range(len(report)):
        changed = bytearray(report)
        changed[position] ^= 1 << position % 8
        try:
            parsed = spdm.parse(bytes(changed))
        except ConfigError:
            continue
        assert device._signature(parsed, leaf).result == "fail", position


@pytest.mark.parametrize("arch", CHIPS)
def test_changed_bytes_are_not_genuine(judge, devices, arch):
    report = devices[arch].report()
    for position in [*range(37), *range(37, 50), *range(50, len(report), 97), *range(len(report) - 96, len(report), 7)]:
        changed = report[:position] + bytes([report[position] ^ 0x80]) + report[position + 1 :]
        try:
            appraisal = judge(arch, report=changed)
        except ConfigError:
            continue
        assert not appraisal.genuine, position
        assert appraisal.verdict == "fail"


def test_no_byte_of_a_certificate_can_be_changed(pki, devices):
    links = devices["hopper"].links
    for place in range(4):
        raw = links[place].certificate.public_bytes(chain.Encoding.DER)
        for position in range(0, len(raw), 3):
            changed = raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :]
            try:
                read = chain.load(lambda data: [x509.load_der_x509_certificate(data)], changed, "chain_format")[0]
            except ConfigError:
                continue
            issuer = links[place + 1].certificate
            below = chain.read(issuer, "chain_format")
            faults = (
                chain.problems([read, below], issuer) if place < 3 else chain.problems([read], pki.root.certificate)
            )
            assert faults, (place, position)
