"""The made-up AMD: each product, key and version is genuine, and each check fails for its own reason and no other."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest import snp
from cordon.attest.snp.certificates import Anchor
from cordon.errors import ConfigError
from fakes import amd_pki as amd

DAY = timedelta(days=1)
OTHER_CHIP = bytes(64 * [9])
ASK, ARK = amd.anchor("Milan").ask, amd.anchor("Milan").ark
ROGUE = {"issuer_key": amd.rsa_key("rogue/ask")}

GENUINE = {
    "product_line", "reserved_zero", "signature_algorithm", "signing_key", "vek_certificate", "chain_root",
    "chain_intermediate", "vek_signature", "ark_validity", "intermediate_validity", "vek_validity", "hwid",
    "tcb_binding", "report_signature",
}  # fmt: skip
REVOCATION = {"crl", "revoked"}
ALWAYS = {"debug", "tcb_order"}  # policy, but asked without a policy too


def judge(evidence):
    return snp.verify(evidence.report, **evidence.rest)


def failed(appraisal):
    return {check.code for check in appraisal.checks if check.result == "fail"}


def changed(**kwargs):
    """Evidence of a VCEK unless said otherwise."""
    return amd.evidence(**kwargs)


def expired_root():
    ark = amd.authority("Milan", "ark", until=amd.NOW - DAY)
    anchor = amd.anchor("Milan")
    return {"Milan": Anchor(ark, anchor.ask, anchor.asvk)}


def rogue_chain(**kwargs):
    """An ARK of somebody else under AMD's names, with an ASK of its own."""
    ark = amd.authority("Milan", "ark", key="rogue/ark", issuer_key="rogue/ark")
    return amd.pem(amd.authority("Milan", "ask", key="rogue/ask", issuer_key="rogue/ark", **kwargs), ark)


def chain(**kwargs):
    return amd.pem(amd.authority("Milan", "ask", **kwargs), amd.anchor("Milan").ark)


def told(product):
    """Milan's evidence of version 2, which does not name the CPU, with the caller's word for it."""
    evidence = changed(version=2)
    return amd.Evidence(evidence.report, {**evidence.rest, "product": product})


def region(offset, **more):
    return changed(report_with={"signed": {offset: b"\x01"}, **more})


def extension(product="Milan", signer="vcek", **values):
    """``_1`` is OID ...3704.1.1, ``_3_8`` is ...3704.1.3.8; None leaves it out."""
    oids = {name[1:].replace("_", "."): value for name, value in values.items()}
    return changed(product=product, signer=signer, vek_with={"extensions": oids})


CASES = {
    # The product line
    "CPU of another product": (changed(report_with={"cpuid": bytes(amd.CPUID["Genoa"])}), {"product_line"}),
    "unknown CPU": (changed(report_with={"cpuid": bytes([0x17, 0x31, 0])}), {"product_line"}),
    "model after Milan's last": (changed(report_with={"cpuid": bytes([0x19, 0x20, 0])}), {"product_line"}),
    "caller says another product": (told("Genoa"), {"product_line"}),
    "VEK says another product": (extension(_2=amd.ia5("Genoa-B0")), {"product_line"}),
    "VEK says another product than its issuer, version 2": (
        changed(version=2, vek_with={"extensions": {"2": amd.ia5("Turin")}}), {"product_line"}),
    "issuer nobody knows": (changed(vek_with={"issuer": "SEV-Rome"}), {"product_line"}),
    "Genoa's report with Milan's key": (
        changed(product="Genoa", report_with={"cpuid": bytes(amd.CPUID["Milan"])}), {"product_line"}),
    # Reserved parts
    "0x4C": (region(0x4C), {"reserved_zero"}),
    "0x18B": (region(0x18B), {"reserved_zero"}),
    "0x19F": (region(0x19F), {"reserved_zero"}),
    "0x1EB": (region(0x1EB), {"reserved_zero"}),
    "0x1EF": (region(0x1EF), {"reserved_zero"}),
    "0x208": (region(0x208), {"reserved_zero"}),
    "0x29F": (region(0x29F), {"reserved_zero"}),
    "CPUID in version 2": (changed(version=2, report_with={"cpuid": bytes([0x19, 1, 1])}), {"reserved_zero"}),
    "mitigations in version 3": (changed(version=3, report_with={"current_mit_vector": 1}), {"reserved_zero"}),
    "policy bit 17 is zero": (changed(report_with={"policy": 1 << 16}), {"reserved_zero"}),
    "policy bit 26": (changed(report_with={"policy": 1 << 17 | 1 << 26}), {"reserved_zero"}),
    "policy bit 63": (changed(report_with={"policy": 1 << 17 | 1 << 63}), {"reserved_zero"}),
    "flags bit 5": (changed(report_with={"flags": 1 << 5}), {"reserved_zero"}),
    "reserved byte of a TCB version": (
        changed(report_with={"current_tcb": amd.tcb("Milan")[:3] + b"\x01" + amd.tcb("Milan")[4:]}), {"reserved_zero"}),
    "reserved byte of Turin's TCB version": (
        changed(product="Turin", report_with={"launch_tcb": amd.tcb("Turin")[:4] + b"\x01\0\0G"}), {"reserved_zero"}),
    "first unsigned byte after the signature": (changed(report_with={"unsigned": {0x330: b"\x01"}}), {"reserved_zero"}),
    "last unsigned byte": (changed(report_with={"unsigned": {0x49F: b"\x80"}}), {"reserved_zero"}),
    "padding of r": (changed(report_with={"unsigned": {0x2A0 + 71: b"\x01"}}), {"reserved_zero", "report_signature"}),
    "padding of s": (changed(report_with={"unsigned": {0x2E8 + 48: b"\x01"}}), {"reserved_zero", "report_signature"}),
    # Signing key and algorithm
    "unknown algorithm": (changed(report_with={"signature_algo": 2}), {"signature_algorithm"}),
    "says it is not signed": (changed(report_with={"flags": 7 << 2}), {"signing_key"}),
    "reserved signing key": (changed(report_with={"flags": 2 << 2}), {"signing_key"}),
    "says VLEK, comes with VCEK": (changed(report_with={"flags": 1 << 2}), {"signing_key"}),
    "says VCEK, comes with VLEK": (changed(signer="vlek", report_with={"flags": 0}), {"signing_key"}),
    # The VEK's form
    "no structVersion": (extension(_1=None), {"vek_certificate"}),
    "structVersion is no integer": (extension(_1=b"\x04\x01\x00"), {"vek_certificate"}),
    "no productName": (extension(_2=None), {"vek_certificate", "product_line"}),
    "productName is UTF8String": (extension(_2=b"\x0c\x05Milan"), {"vek_certificate", "product_line"}),
    "productName with a tail": (extension(_2=amd.ia5("Milan") + b"\0"), {"vek_certificate", "product_line"}),
    "long form of an SPL": (extension(_3_1=b"\x02\x02\x00\x04"), {"vek_certificate", "tcb_binding"}),
    "negative SPL": (extension(_3_8=b"\x02\x01\xdb"), {"vek_certificate", "tcb_binding"}),
    "reserved SPL is not zero": (extension(_3_5=amd.integer(1)), {"vek_certificate"}),
    "fmc for Milan": (extension(_3_9=amd.integer(0)), {"vek_certificate", "tcb_binding"}),
    "no fmc for Turin": (extension(product="Turin", _3_9=None), {"vek_certificate", "tcb_binding"}),
    "VCEK with CSP_ID": (extension(_5=amd.ia5(amd.CSP)), {"vek_certificate"}),
    "VCEK without HWID": (extension(_4=None), {"vek_certificate"}),
    "VCEK with a HWID of 32 bytes": (extension(_4=bytes(32)), {"vek_certificate"}),
    "VLEK with HWID": (extension(signer="vlek", _4=amd.CHIP["Milan"]), {"vek_certificate"}),
    "VLEK without CSP_ID": (extension(signer="vlek", _5=None), {"vek_certificate", "hwid"}),
    "VLEK with an empty CSP_ID": (extension(signer="vlek", _5=amd.ia5("")), {"vek_certificate", "hwid"}),
    "critical extensions": (changed(vek_with={"critical": True}), {"vek_certificate"}),
    "P-256 key": (changed(vek_with={"key": ec.generate_private_key(ec.SECP256R1())}), {"vek_certificate"}),
    "RSA key": (changed(vek_with={"key": rsa.generate_private_key(65537, 2048)}), {"vek_certificate"}),
    "neither VCEK nor VLEK": (
        changed(vek_with={"subject": "SEV-ASK"}), {"vek_certificate", "signing_key", "product_line"}),
    "signed with PKCS #1 v1.5": (changed(vek_with={"pss": False}), {"vek_certificate", "vek_signature"}),
    # The chain
    "salt of 32 bytes": (changed(vek_with={"salt": 32}), {"vek_signature"}),
    "signed with SHA-256": (changed(vek_with={"digest": SHA256()}), {"vek_signature"}),
    "VCEK signed by the ASVK": (changed(vek_with={"issuer_key": amd.rsa_key("Milan/asvk")}), {"vek_signature"}),
    "VLEK signed by the ASK": (
        changed(signer="vlek", vek_with={"issuer_key": amd.rsa_key("Milan/ask")}), {"vek_signature"}),
    "VCEK signed by another product's ASK": (
        changed(vek_with={"issuer_key": amd.rsa_key("Genoa/ask")}), {"vek_signature"}),
    "VCEK signed by nobody known": (changed(vek_with={"issuer_key": amd.rsa_key("nobody")}), {"vek_signature"}),
    # microsoft/TEE-Attestation-Verification #140: the chain's own ARK taken as the anchor.
    "whole chain under an ARK of its own": (
        changed(vek_with=ROGUE, chain=rogue_chain()), {"chain_root", "chain_intermediate"}),
    "ASK under another ARK, beside the pinned ARK": (
        changed(vek_with=ROGUE, chain=chain(key="rogue/ask", issuer_key="rogue/ark")), {"chain_intermediate"}),
    "pinned key in another ARK certificate": (
        changed(chain=amd.pem(ASK, amd.authority("Milan", "ark", until=amd.NOW + DAY))), {"chain_root"}),
    "chain of another product": (
        changed(chain=amd.pem(amd.anchor("Genoa").ask, amd.anchor("Genoa").ark)),
        {"chain_root", "chain_intermediate", "vek_signature"}),
    "ASVK in the place of the ASK": (
        changed(chain=amd.pem(amd.anchor("Milan").asvk, ARK)), {"chain_intermediate", "vek_signature"}),
    "ASK is no authority": (changed(chain=chain(ca=False)), {"chain_intermediate"}),
    "ASK may not sign certificates": (changed(chain=chain(cert_sign=False)), {"chain_intermediate"}),
    "ASK by another issuer's name": (changed(chain=chain(issuer="ARK-Genoa")), {"chain_intermediate"}),
    "ASK by another name": (changed(chain=chain(subject="SEV-Genoa")), {"chain_intermediate"}),
    # Validity
    "ASK not yet valid": (changed(chain=chain(since=amd.NOW + DAY)), {"intermediate_validity"}),
    "ASK expired": (changed(chain=chain(until=amd.NOW - DAY)), {"intermediate_validity"}),
    "VEK not yet valid": (changed(vek_with={"since": amd.NOW + DAY}), {"vek_validity"}),
    "VEK expired": (changed(vek_with={"until": amd.NOW - DAY}), {"vek_validity"}),
    "ARK expired": (changed(roots=expired_root()), {"ark_validity"}),
    "before all of it": (
        changed(now=datetime(2019, 1, 1, tzinfo=UTC)),
        {"ark_validity", "intermediate_validity", "vek_validity", "crl"}),
    # Revocation
    "CRL by another key": (changed(crl=amd.crl("Milan", key="rogue/ark")), {"crl"}),
    "CRL by the ASK": (changed(crl=amd.crl("Milan", key="Milan/ask", issuer="SEV-Milan")), {"crl"}),
    "CRL by another issuer's name": (changed(crl=amd.crl("Milan", issuer="ARK-Genoa")), {"crl"}),
    "CRL of another product": (changed(crl=amd.crl("Genoa")), {"crl"}),
    "CRL out of date": (changed(crl=amd.crl("Milan", until=amd.NOW - DAY)), {"crl"}),
    "CRL of tomorrow": (changed(crl=amd.crl("Milan", since=amd.NOW + DAY)), {"crl"}),
    "CRL that is a delta": (changed(crl=amd.crl("Milan", extension=x509.DeltaCRLIndicator(1))), {"crl"}),
    "ASK revoked": (changed(crl=amd.crl("Milan", (5, 0x10001))), {"revoked"}),
    "ARK revoked": (changed(crl=amd.crl("Milan", (0x10000,))), {"revoked"}),
    "ASVK revoked": (changed(signer="vlek", crl=amd.crl("Milan", (0x10101,))), {"revoked"}),
    "ASK revoked in a CRL out of date": (
        changed(crl=amd.crl("Milan", (0x10001,), until=amd.NOW - DAY)), {"crl", "revoked"}),
    # Chip and TCB version
    "VCEK of another chip": (extension(_4=OTHER_CHIP), {"hwid"}),
    "chip masked under a VCEK": (changed(report_with={"chip_id": bytes(64)}), {"hwid"}),
    "VCEK of no chip": (
        changed(vek_with={"extensions": {"4": bytes(64)}}, report_with={"chip_id": bytes(64)}), {"hwid"}),
    "Turin with something after its 8 bytes": (
        changed(product="Turin", report_with={"chip_id": amd.CHIP["Turin"][:8] + bytes(55) + b"\x01"}), {"hwid"}),
    "Turin with a HWID of 64 bytes": (extension(product="Turin", _4=amd.CHIP["Turin"]), {"hwid"}),
    "Milan with a HWID of 8 bytes": (
        changed(vek_with={"extensions": {"4": b"12345678"}}, report_with={"chip_id": b"12345678".ljust(64, b"\0")}),
        {"hwid"}),
    # The report's signature
    "another chip's key": (changed(report_with={"key": amd.chip_key("other")}), {"report_signature"}),
    "r is zero": (changed(report_with={"unsigned": {0x2A0: bytes(72)}}), {"report_signature"}),
    "s is zero": (changed(report_with={"unsigned": {0x2E8: bytes(72)}}), {"report_signature"}),
    "measurement changed after signing": (
        changed(report_with={"unsigned": {0x90: b"\xff"}}), {"report_signature"}),
    # Asked without a policy too
    "debug guest": (changed(report_with={"policy": 1 << 17 | 1 << 19}), {"debug"}),
    "committed above current": (changed(report_with={"committed_tcb": amd.tcb("Milan", snp=25)}), {"tcb_order"}),
    "committed firmware above current": (changed(report_with={"committed": bytes([41, 55, 1])}), {"tcb_order"}),
    "reported above current": (
        changed(report_with={"reported_tcb": amd.tcb("Milan", microcode=220)},
                vek_with={"extensions": {"3.8": amd.integer(220)}}), {"tcb_order"}),
    "current below both": (changed(report_with={"current_tcb": amd.tcb("Milan", microcode=218)}), {"tcb_order"}),
}  # fmt: skip
CASES |= {
    f"{product} {name} of the VEK is missing": (
        extension(product=product, **{"_" + oid.replace(".", "_"): None}), {"vek_certificate", "tcb_binding"})
    for product in ("Milan", "Turin")
    for name, (_, oid, _) in amd.layout(product).items()
}  # fmt: skip
CASES |= {
    f"{product} reports less {name} than the VEK": (
        changed(product=product, report_with={"reported_tcb": amd.tcb(product, **{name: 0})}), {"tcb_binding"})
    for product in ("Milan", "Turin")
    for name in amd.layout(product)
}  # fmt: skip


@pytest.mark.parametrize("product", amd.PRODUCTS)
@pytest.mark.parametrize("signer", amd.SIGNERS)
@pytest.mark.parametrize("version", amd.VERSIONS)
def test_every_product_signer_and_version_is_genuine(product, signer, version):
    appraisal = judge(amd.evidence(product, signer, version))
    assert appraisal.genuine
    assert not failed(appraisal)
    assert {check.code for check in appraisal.checks if check.kind == "genuine"} == GENUINE
    assert {check.code for check in appraisal.checks if check.kind == "revocation"} == REVOCATION
    assert appraisal.verdict == "not_checked"  # there was no policy
    claims = appraisal.claims
    assert (claims["product"], claims["signer"], claims["report_version"]) == (product, signer, version)
    assert claims["report_data"] == amd.REPORT_DATA.hex()
    assert claims["measurement"] == "13" * 48
    assert claims["csp_id"] == (amd.CSP if signer == "vlek" else None)
    assert claims["current_tcb"] == {name: number for name, (_, _, number) in amd.layout(product).items()}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_fails_its_own_checks_and_no_other(name):
    evidence, codes = CASES[name]
    appraisal = judge(evidence)
    assert failed(appraisal) == codes
    assert appraisal.genuine == (codes <= ALWAYS)
    assert appraisal.verdict == "fail"


def test_every_check_that_needs_no_policy_has_a_case():
    assert set().union(*(codes for _, codes in CASES.values())) == GENUINE | REVOCATION | ALWAYS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"vek_with": {"key": ec.generate_private_key(ec.SECP256R1())}}, "report_signature"),
        ({"vek_with": {"extensions": {"4": None}}}, "hwid"),
        ({"vek_with": {"issuer": "SEV-Rome"}}, "vek_signature"),
        ({"vek_with": {"issuer": "SEV-Rome"}}, "tcb_binding"),
        ({"vek_with": {"issuer": "SEV-Rome"}}, "crl"),
        ({"crl": amd.crl("Milan", key="rogue/ark")}, "revoked"),
        ({"crl": None}, "crl"),
        ({"crl": None}, "revoked"),
    ],
)
def test_what_cannot_be_asked_is_not_checked(change, code):
    appraisal = judge(changed(**change))
    assert {check.code: check.result for check in appraisal.checks}[code] == "not_checked"


def test_several_faults_are_reported_together():
    evidence = changed(
        vek_with={"until": amd.NOW - DAY, "extensions": {"3.3": None}},
        report_with={"policy": 1 << 17 | 1 << 19, "unsigned": {0x400: b"\x01"}},
        crl=amd.crl("Milan", (0x10001,)),
    )
    assert failed(judge(evidence)) == {
        "vek_validity", "vek_certificate", "tcb_binding", "debug", "reserved_zero", "revoked",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("product", "model"),
    [("Milan", (0x19, 0x0F)), ("Genoa", (0x19, 0x1F)), ("Genoa", (0x19, 0xA0)), ("Genoa", (0x19, 0xAF)),
     ("Turin", (0x1A, 0x00)), ("Turin", (0x1A, 0x11))],
)  # fmt: skip
def test_models_of_a_product_line(product, model):
    assert judge(amd.evidence(product, report_with={"cpuid": bytes([*model, 0])})).genuine


@pytest.mark.parametrize("name", ["Genoa", "Genoa-B1", "Bergamo-A1", "Siena-A0"])
def test_names_of_the_genoa_line(name):
    assert judge(amd.evidence("Genoa", vek_with={"extensions": {"2": amd.ia5(name)}})).genuine


@pytest.mark.parametrize("product", amd.PRODUCTS)
def test_a_hwid_in_an_octet_string_is_read(product):
    bare = amd.vek_extensions(product, "vcek")["4"]
    assert judge(amd.evidence(product, vek_with={"extensions": {"4": bytes([4, len(bare)]) + bare}})).genuine


def test_a_version_2_report_may_come_with_the_product():
    assert judge(told("Milan")).genuine


def test_a_vlek_says_nothing_of_the_chip():
    for chip in (bytes(64), OTHER_CHIP):
        assert judge(amd.evidence(signer="vlek", report_with={"chip_id": chip})).genuine


def test_a_chain_may_come_beside_the_vek_or_behind_it_in_any_order():
    ask, ark = amd.anchor("Milan").ask, amd.anchor("Milan").ark
    vek = amd.vek("Milan", "vcek")
    for rest in (
        {"chain": amd.pem(ask, ark)},
        {"chain": amd.pem(ark, ask)},
        {"vek": amd.pem(vek, ask, ark)},
        {"chain": amd.pem(vek, ask, ark), "vek": amd.pem(vek)},
        {"vek": amd.pem(vek)},
        {"vek": amd.pem(vek, amd.anchor("Genoa").ask, amd.anchor("Genoa").ark), "chain": amd.pem(ask, ark)},
    ):
        assert judge(changed(**rest)).genuine


def test_another_ask_that_the_pinned_ark_signed_is_accepted():
    evidence = changed(vek_with={"issuer_key": amd.rsa_key("Milan/ask2")}, chain=chain(key="Milan/ask2"))
    assert judge(evidence).genuine


@pytest.mark.parametrize("product", amd.PRODUCTS)
def test_the_made_up_amd_is_not_amd(product):
    """Without the tests' own anchors nothing of it passes, not even with its whole chain under AMD's names."""
    anchor = amd.anchor(product)
    for chain_ in (None, amd.pem(anchor.ask, anchor.ark)):
        appraisal = judge(amd.evidence(product, roots=None, chain=chain_))
        wanted = {"crl", "vek_signature"} if chain_ is None else {"crl", "chain_root", "chain_intermediate"}
        assert failed(appraisal) == wanted
        assert not appraisal.genuine


def test_instants_in_other_time_zones_are_the_same_instant():
    edge = amd.NOW + timedelta(hours=1)
    west = timezone(timedelta(hours=-8))
    assert judge(changed(vek_with={"until": edge}, now=edge.astimezone(west))).genuine
    late = (edge + timedelta(seconds=1)).astimezone(west)
    assert failed(judge(changed(vek_with={"until": edge}, now=late))) == {"vek_validity"}


def test_report_data_is_compared_where_it_is_given():
    assert "report_data" not in failed(judge(changed(report_data=amd.REPORT_DATA)))
    appraisal = judge(changed(report_data=bytes(64)))
    assert failed(appraisal) == {"report_data"}
    assert appraisal.genuine


def even(make):
    """A certificate or CRL whose signature ends in a zero bit, so that one unused bit could be claimed."""
    return next(made for made in iter(make, None) if made.signature[-1] % 2 == 0)


def with_unused_bit(signed):
    der = bytearray(signed.public_bytes(Encoding.DER))
    der[-len(signed.signature) - 1] = 1
    return bytes(der)


def test_a_signature_has_one_encoding():
    """cryptography reads a BIT STRING with unused bits as the same signature."""
    vek = even(lambda: amd.vek("Milan", "vcek"))
    assert failed(judge(changed(vek=with_unused_bit(vek)))) == {"vek_signature"}
    crl = even(lambda: x509.load_der_x509_crl(amd.crl("Milan")))
    assert failed(judge(changed(crl=with_unused_bit(crl)))) == {"crl"}


def test_the_algorithm_beside_the_signature_is_the_signed_one():
    vek = amd.vek("Milan", "vcek")
    der = vek.public_bytes(Encoding.DER)
    beside = der.index(vek.tbs_certificate_bytes) + len(vek.tbs_certificate_bytes)
    at = der.index(b"\xa2\x03\x02\x01\x30", beside) + 4  # salt length 48
    assert failed(judge(changed(vek=der[:at] + b"\x20" + der[at + 1 :]))) == {"vek_signature"}


def test_pem_crl_is_read():
    crl = x509.load_der_x509_crl(amd.crl("Milan")).public_bytes(Encoding.PEM)
    assert {check.code: check.result for check in judge(changed(crl=crl)).checks}["crl"] == "pass"


def vek_der():
    return amd.vek("Milan", "vcek").public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vek": b""}, "vek_format:"),
        ({"vek": "text"}, "vek_format: vek is str"),
        ({"vek": b"-----BEGIN CERTIFICATE-----\n"}, "vek_format:"),
        ({"vek": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}, "vek_format:"),
        ({"vek": vek_der() + b"\0"}, "vek_format:"),
        ({"vek": vek_der()[:-1]}, "vek_format:"),
        ({"vek": bytes(64 * 1024 + 1)}, "vek_format: vek has 65537 bytes"),
        ({"vek": amd.pem(amd.vek("Milan", "vcek"), amd.anchor("Milan").ask)}, "chain_format: 1 certificates"),
        ({"chain": b""}, "chain_format:"),
        ({"chain": amd.pem(amd.anchor("Milan").ark)}, "chain_format: 1 certificates"),
        ({"chain": amd.pem(*[amd.anchor("Milan").ark] * 2)}, "chain_format: 2 of 2"),
        ({"chain": amd.pem(*[amd.anchor("Milan").ask] * 2)}, "chain_format: 0 of 2"),
        ({"chain": amd.pem(*[amd.anchor("Milan").ask] * 3)}, "chain_format: 3 certificates"),
        ({"crl": b""}, "crl_format:"),
        ({"crl": 7}, "crl_format: crl is int"),
        ({"crl": amd.crl("Milan")[:-1]}, "crl_format:"),
        ({"crl": vek_der()}, "crl_format:"),
        ({"crl": bytes(1024 * 1024 + 1)}, "crl_format: crl has 1048577 bytes"),
        ({"product": "Rome"}, "product: 'Rome'"),
        ({"report_data": b"short"}, "report_data:"),
        ({"now": datetime(2026, 6, 1)}, "now:"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(change, message):
    evidence = changed()
    with pytest.raises(ConfigError) as error:
        snp.verify(evidence.report, **{**evidence.rest, **change})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
