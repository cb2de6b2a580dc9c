"""What a quote, its collateral and an event log look like, and that nothing else gets further than one clear error."""

import contextlib
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.attest import sgx, tdx
from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import event_log, pck, quote, reports
from cordon.errors import ConfigError
from fakes.intel_pki import (
    CPU_SVN,
    INSTANCE,
    NOW,
    PPID,
    IntelPki,
    ccel,
    certify,
    der,
    key,
    sgx_extension,
    sgx_report,
    td_report,
)

PKI = IntelPki()
QUOTE = PKI.quote()
COLLATERAL = PKI.collateral()
NO_INSTANTS = [
    NOW.replace(tzinfo=None),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
]


def digest(text):
    return hashlib.sha384(text).digest()


def test_version_4_quote_fields_are_read_from_their_places():
    parsed = quote.parse(QUOTE)
    assert (parsed.version, parsed.attestation_key_type, parsed.tee_type) == (4, 2, 0x81)
    assert parsed.user_data == bytes(range(20))
    assert (parsed.body_kind, parsed.body, parsed.signed) == ("tdx_1.0", td_report(), QUOTE[: 48 + 584])
    assert parsed.qe_auth_data == bytes(range(32))
    assert (parsed.certification_type, parsed.tail) == (5, b"")


@pytest.mark.parametrize(
    ("body", "version", "kind"),
    [(td_report(), 5, "tdx_1.0"), (td_report("1.5"), 5, "tdx_1.5"), (sgx_report(), 3, "sgx"), (sgx_report(), 5, "sgx")],
)
def test_other_versions_have_their_own_bodies(body, version, kind):
    parsed = quote.parse(PKI.quote(body, version=version))
    assert (parsed.version, parsed.body_kind, parsed.body) == (version, kind, body)
    assert len(parsed.signed) == 48 + 6 * (version == 5) + len(body)


def test_td_report_1_5_fields_are_read_from_their_places():
    names = ("mr_seam", "mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config")
    wanted = {name: digest(name.encode()) for name in (*names, "mr_service_td")}
    found = reports.td_report(td_report("1.5", **wanted, tee_tcb_svn2=b"2" * 16))
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert found.tee_tcb_svn2 == b"2" * 16
    assert found.report_data == bytes(range(64))


def test_sgx_report_fields_are_read_from_their_places():
    found = reports.sgx_report(
        sgx_report(
            config_id=b"c" * 64,
            isv_family_id=b"f" * 16,
            isv_ext_prod_id=b"x" * 16,
            config_svn=b"\x09\0",
            misc_select=b"\1\0\0\0",
            reserved4=b"\0" * 41 + b"4",
        )
    )
    assert (found.config_id, found.isv_family_id, found.isv_ext_prod_id) == (b"c" * 64, b"f" * 16, b"x" * 16)
    assert (found.isv_prod_id, found.isv_svn, found.config_svn, found.misc_select) == (7, 3, 9, b"\1\0\0\0")
    assert found.report_data == bytes(range(64))
    assert found.reserved == bytes(12 + 32 + 32 + 41) + b"4"
    assert found.flags == {**dict.fromkeys(reports.SGX_FLAGS.values(), False), "init": True, "mode64": True}


def test_pck_extension_is_read():
    found = pck.read_platform(PKI.pck)
    assert (found.ppid, found.platform_instance_id, found.cpu_svn) == (PPID, INSTANCE, CPU_SVN.hex())
    assert (found.pce_svn, found.pce_id, found.fmspc, found.sgx_type) == (13, "0000", "00906ed50000", 1)
    assert (found.dynamic_platform, found.cached_keys, found.smt) == (True, True, True)


def test_pck_of_a_processor_ca_has_no_configuration():
    found = pck.read_platform(PKI.certify_pck(configuration=None))
    assert (found.platform_instance_id, found.dynamic_platform, found.smt) == (None, None, None)


@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5])
def test_pck_extension_that_lacks_a_value_is_refused(missing):
    with pytest.raises(ValueError, match="lacks"):
        pck.read_platform(PKI.certify_pck(without=bytes([missing])))


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\x30\x80",
        der(0x30, b"\x30\x05"),
        der(0x30, der(0x30, der(0x06, b"\x2a") + der(0x04, b""))),
        sgx_extension()[:-1],
        sgx_extension() + b"\0",
        sgx_extension(ppid="ab" * 15),
    ],
    ids=["empty", "indefinite", "cut entry", "other oid", "cut", "trailing", "short ppid"],
)
def test_malformed_pck_extension_is_refused(extension):
    certificate = certify("x", key(9), "y", key(8), serial=9, ca=False, sgx=extension)
    with pytest.raises(ValueError, match="SGX extension"):
        pck.read_platform(certificate)


def test_pck_without_extension_is_refused():
    with pytest.raises(ValueError, match="no SGX extension"):
        pck.read_platform(PKI.ca)


BAD_QUOTES = {
    "empty": (b"", "quote_format"),
    "text": ("quote", "quote_format"),
    "too long": (QUOTE + bytes(quote.MAX_QUOTE), "quote_format"),
    "version 2": (b"\2" + QUOTE[1:], "quote_version"),
    "version 6": (b"\6" + QUOTE[1:], "quote_version"),
    "body type 9": (PKI.quote(version=5)[:48] + b"\x09" + PKI.quote(version=5)[49:], "quote_version"),
    "body of another size": (PKI.quote(version=5)[:50] + b"\x09" + PKI.quote(version=5)[51:], "quote_version"),
    "signature data longer than the quote": (QUOTE[:632] + b"\xff\xff\xff\x7f" + QUOTE[636:], "quote_format"),
    "gap after the certificates": (
        QUOTE[:632] + struct.pack("<I", len(QUOTE) - 636 + 1) + QUOTE[636:] + b"\0",
        "quote_format",
    ),
    "another outer certification type": (QUOTE[:764] + b"\5" + QUOTE[765:], "quote_format"),
}


@pytest.mark.parametrize("verify", [tdx.verify, sgx.verify])
@pytest.mark.parametrize("case", BAD_QUOTES)
def test_malformed_quote_is_one_clear_error(verify, case):
    data, code = BAD_QUOTES[case]
    with pytest.raises(ConfigError, match=rf"\A{code}: "):
        verify(data, now=NOW)


@pytest.mark.parametrize("verify", [tdx.verify, sgx.verify])
@pytest.mark.parametrize("now", NO_INSTANTS, ids=str)
def test_a_time_without_zone_or_date_in_utc_is_refused(verify, now):
    with pytest.raises(ConfigError, match=r"\Anow: "):
        verify(QUOTE, collateral=COLLATERAL, now=now)


@pytest.mark.parametrize("now", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)], ids=str)
@pytest.mark.parametrize("body", [td_report(), td_report(td_attributes=bytes(8))], ids=["dcap-qvl", "our evaluation"])
def test_any_instant_has_a_verdict(now, body):
    assert tdx.verify(PKI.quote(body), collateral=COLLATERAL, now=now, root=PKI.root).verdict == "fail"


def test_a_certificate_of_the_year_0_is_no_certificate():
    """The library reads a date only when it is asked for it, long after it took the certificate for one."""
    good = PKI.pck.public_bytes(Encoding.DER)
    late = certify("x", key(9), "y", key(8), serial=9, ca=False, until=datetime(2050, 1, 1, tzinfo=UTC))
    old = late.public_bytes(Encoding.DER).replace(b"20500101", b"00000101")
    with pytest.raises(ValueError, match="not a certificate"):
        pck.load(old)
    assert pck.load(good) == PKI.pck
    chain = pck.pem(old) + PKI.chain().split(pck.END, 1)[1]
    appraisal = tdx.verify(PKI.quote(certification=chain), collateral=COLLATERAL, now=NOW, root=PKI.root)
    assert not appraisal.genuine
    signer = pck.pem(old).decode()
    appraisal = tdx.verify(QUOTE, collateral=changed_collateral(tcb_info_issuer_chain=signer), now=NOW, root=PKI.root)
    assert not appraisal.genuine


def changed_collateral(**change):
    return json.dumps(json.loads(COLLATERAL) | change).encode()


def signed_info(**change):
    return PKI.collateral(tcb_info=PKI.tcb_info() | change)


ODD = [None, 1, -1, "", "x" * 50, [], [None], {}, True, 2**70, "2026-13-01T00:00:00Z", "9999-12-31T23:59:59-12:00"]


@pytest.mark.parametrize("field", sorted(PKI.tcb_info()))
def test_odd_values_in_a_signed_tcb_info_raise_nothing_else(field):
    for value in ODD:
        for body in (td_report(), td_report(td_attributes=bytes(8))):
            try:
                appraisal = tdx.verify(
                    PKI.quote(body), collateral=signed_info(**{field: value}), now=NOW, root=PKI.root
                )
            except ConfigError:
                continue
            assert appraisal.claims


@pytest.mark.parametrize("date", ["2025-10-07T12:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", 5])
def test_odd_dates_of_levels_raise_nothing_else(date):
    info = PKI.tcb_info(status="OutOfDate")
    info["tcbLevels"][0]["tcbDate"] = date
    for body in (td_report(), td_report(td_attributes=bytes(8))):
        assert tdx.verify(PKI.quote(body), collateral=PKI.collateral(tcb_info=info), now=NOW, root=PKI.root).claims


def dated(document, **dates):
    """Collateral whose ``document``, which nobody signed like that, has other dates."""
    text = json.loads(json.loads(COLLATERAL)[document]) | dates
    return changed_collateral(**{document: json.dumps(text)})


BAD_COLLATERAL = {
    "empty": b"",
    "text": "{}",
    "too long": b" " * (collaterals.MAX_COLLATERAL + 1),
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "a field is missing": b"{}",
    "unknown field": changed_collateral(more="x"),
    "a field of another type": changed_collateral(pck_crl=1),
    "CRL not hex": changed_collateral(pck_crl="zz"),
    "CRL not DER": changed_collateral(root_ca_crl="00"),
    "CRL is a certificate": changed_collateral(pck_crl="3003020101"),
    "signature not hex": changed_collateral(tcb_info_signature="0"),
    "TCB info not JSON": changed_collateral(tcb_info="{"),
    "TCB info without dates": changed_collateral(tcb_info="{}"),
    "date without zone": changed_collateral(
        qe_identity='{"issueDate":"2026-01-01T00:00:00","nextUpdate":"2026-02-01T00:00:00"}'
    ),
    "a date before the calendar": dated("tcb_info", nextUpdate="0001-01-01T00:00:00+14:00"),
    "a date after the calendar": dated("qe_identity", nextUpdate="9999-12-31T23:59:59-14:00"),
    "issued before the calendar": dated("qe_identity", issueDate="0001-01-01T00:00:00+14:00"),
    "a date with an offset": dated("tcb_info", nextUpdate="2026-02-01T01:00:00+01:00"),
}


@pytest.mark.parametrize("case", BAD_COLLATERAL)
def test_malformed_collateral_is_one_clear_error(case):
    with pytest.raises(ConfigError, match=r"\Acollateral_format: "):
        tdx.verify(QUOTE, collateral=BAD_COLLATERAL[case], now=NOW, root=PKI.root)


def test_event_log_replays_by_register():
    log = ccel((1, 1, digest(b"a")), (1, 1, digest(b"b")), (4, 8, digest(b"c")), (2, 3, digest(b"said, not measured")))
    first = digest(digest(bytes(48) + digest(b"a")) + digest(b"b"))
    assert event_log.replay(event_log.parse(log)) == (first, bytes(48), bytes(48), digest(bytes(48) + digest(b"c")))


@pytest.mark.parametrize("end", [b"", b"\0" * 999, b"\xff" * 999], ids=["nothing", "zeros", "ones"])
def test_event_log_ends_in_unused_memory(end):
    assert len(event_log.parse(ccel((1, 1, digest(b"a")), end=end))) == 1


BAD_LOGS = {
    "empty": b"",
    "text": "log",
    "too long": bytes(event_log.MAX_EVENT_LOG + 1),
    "zeros": bytes(100),
    "cut header": ccel()[:50],
    "cut entry": ccel((1, 1, digest(b"a")))[:-1],
    "mixed end": ccel((1, 1, digest(b"a")), end=b"\0\xff\0"),
    "MRTD is no log's business": ccel((0, 1, digest(b"a"))),
    "register 5": ccel((5, 1, digest(b"a"))),
    "no SHA-384": ccel(algorithms=((0x0B, 32),)),
    "no algorithms": ccel(algorithms=()),
    "SHA-384 of another size": ccel(algorithms=((0x0C, 32),)),
    "event without SHA-384": ccel() + struct.pack("<IIII", 1, 1, 0, 0),
    "digest of an unnamed algorithm": ccel() + struct.pack("<IIIH", 1, 1, 1, 4) + bytes(48),
    "two digests of one algorithm": ccel(algorithms=((0x0C, 48), (0x0B, 32)))
    + struct.pack("<III", 1, 1, 2)
    + (b"\x0c\0" + bytes(48)) * 2
    + bytes(4),
    "more digests than algorithms": ccel() + struct.pack("<III", 1, 1, 0xFFFF),
    "another signature": ccel().replace(b"Event03", b"Event04"),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_malformed_event_log_is_one_clear_error(case):
    with pytest.raises(ConfigError, match=r"\Aevent_log_format: "):
        tdx.verify(QUOTE, event_log=BAD_LOGS[case], now=NOW)


def test_event_log_of_too_many_events_is_refused(monkeypatch):
    monkeypatch.setattr(event_log, "MAX_EVENTS", 2)
    with pytest.raises(ConfigError, match="more than 2"):
        event_log.parse(ccel(*[(1, 1, digest(b"a"))] * 3))


SPLICE = st.tuples(st.integers(0, 5000), st.integers(0, 40), st.binary(max_size=40))


def spliced(data, changes):
    for start, size, new in changes:
        data = data[:start] + new + data[start + size :]
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(SPLICE, min_size=1, max_size=3), which=st.sampled_from([3, 4, 5]))
def test_spliced_quotes_are_refused_and_nothing_else_is_raised(changes, which):
    original = PKI.quote(version=which)
    data = spliced(original, changes)
    verify = sgx.verify if which == 3 else tdx.verify
    try:
        appraisal = verify(data, collateral=PKI.collateral(which != 3), now=NOW, root=PKI.root)
    except ConfigError:
        return
    assert not appraisal.genuine or data.rstrip(b"\0") == original.rstrip(b"\0")


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=1500))
def test_random_bytes_are_no_quote(data):
    for verify in (tdx.verify, sgx.verify):
        with pytest.raises(ConfigError):
            verify(data, now=NOW)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=3)
)
def test_spliced_collateral_raises_nothing_else(changes):
    with contextlib.suppress(ConfigError):
        tdx.verify(QUOTE, collateral=spliced(COLLATERAL, changes), now=NOW, root=PKI.root)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=3)
)
def test_spliced_event_logs_raise_nothing_else(changes):
    log = ccel(*[(n, 1, digest(b"a")) for n in (1, 2, 3, 4)], end=bytes(16))
    with contextlib.suppress(ConfigError):
        event_log.replay(event_log.parse(spliced(log, changes)))
