"""AMD's list of revoked certificates: one per product and kind of VEK, signed by the ARK (AMD 57230, "crl").

It names ASKs, ASVKs and ARKs. VEKs are not in it: they all have serial number 0, ASK and ASVK may not sign lists (their
key usage lacks cRLSign), and AMD retires a VEK by raising the TCB version.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cordon.attest.snp.certificates import BAD, one_line, quiet, signature_holds
from cordon.attest.snp.policy import SnpPolicy
from cordon.attest.verdict import Check, against, check
from cordon.errors import ConfigError

MAX_CRL = 1024 * 1024  # bytes


def load(data: bytes) -> x509.CertificateRevocationList:
    """The list in ``data``, PEM or DER.

    Raises:
        ConfigError: ``crl_format``: too large, or not such.
    """
    if not isinstance(data, bytes):
        raise ConfigError(f"crl_format: crl is {type(data).__name__}, want bytes")
    if len(data) > MAX_CRL:
        raise ConfigError(f"crl_format: crl has {len(data)} bytes, more than the {MAX_CRL} allowed")
    try:
        crl = x509.load_pem_x509_crl(data) if b"-----BEGIN" in data else x509.load_der_x509_crl(data)
        with quiet():
            _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, list(crl.extensions), len(crl)
    except BAD as error:
        raise ConfigError(f"crl_format: crl is no X.509 CRL in PEM or DER: {one_line(error)}") from error
    return crl


def checks(
    crl: x509.CertificateRevocationList | None,
    ark: x509.Certificate | None,
    chain: tuple[x509.Certificate, ...],
    now: datetime,
    policy: SnpPolicy | None,
) -> list[Check]:
    """``crl``: the list is the ARK's and in force; ``revoked``: no certificate of ``chain`` is in it; ``crl_age``."""
    if crl is None or ark is None:
        waived = policy is not None and policy.crl == "any"
        why = "no CRL was given" if crl is None else "no product, so no ARK to check the CRL with"
        unasked = [Check(code, "not_checked", why, "revocation", waived) for code in ("crl", "revoked")]
        age_waived = waived or (policy is not None and policy.crl_max_age_s == "any")
        return [*unasked, Check("crl_age", "not_checked", why, "policy", age_waived)]

    faults = []
    issued, until = crl.last_update_utc, crl.next_update_utc
    critical = [extension.oid.dotted_string for extension in crl.extensions if extension.critical]
    with quiet():
        if crl.issuer != ark.subject:
            faults.append("its issuer is not the ARK")
    authentic = signature_holds(ark, crl.signature, crl.tbs_certlist_bytes, crl.public_bytes(Encoding.DER))
    if not authentic:
        faults.append("the ARK did not sign it")
    if critical:  # a delta or partial list, which says nothing of what it leaves out (RFC 5280, 5.2)
        faults.append(f"it has critical extensions {', '.join(critical)}")
    if until is None:
        faults.append("it does not say until when it holds")
    elif not issued <= now <= until:
        faults.append(f"it holds from {issued:%Y-%m-%dT%H:%M:%SZ} to {until:%Y-%m-%dT%H:%M:%SZ}")
    said = f"CRL of {issued:%Y-%m-%dT%H:%M:%SZ}"
    answers = [check("crl", not faults, "; ".join([said, *faults]), "revocation")]

    if authentic:  # also if it is out of date: what was revoked stays so
        with quiet():
            serials = [each.serial_number for each in chain]
        found = [serial for serial in serials if crl.get_revoked_certificate_by_serial_number(serial) is not None]
        detail = f"serial numbers {', '.join(map(str, serials))}; revoked: {', '.join(map(str, found)) or 'none'}"
        answers.append(check("revoked", not found, detail, "revocation"))
    else:
        answers.append(Check("revoked", "not_checked", "the CRL is not the ARK's", "revocation"))

    wanted = policy.crl_max_age_s if policy else None
    answers.append(against("crl_age", said, wanted, lambda age: now - issued <= timedelta(seconds=age)))
    return answers
