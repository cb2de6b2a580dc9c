"""Appraisal of evidence, each as a ratio to the bare signature verifications that the same input needs.

    PYTHONPATH=custom python tests/bench/bench_attest.py [--json] [--repeat 101]

With CORDON_VECTORS the evidence is real (SEV-SNP of a Genoa, a TDX quote, a Hopper report), else of the made-up vendors
of ``tests/fakes``, with keys as long as the real ones'. Per case, medians of runs that take turns:

* ``<case>_ms``     the verifier with a policy that names every field
* ``<case>_bare_ms`` ``cryptography`` on the loaded keys: each signature that must be checked, once, and nothing else
* ``<case>_ratio``  the one over the other
* ``<case>_uncached_ms`` as ``_ms``, all caches of ``cordon.attest`` emptied before each run
* ``<case>_first_ms`` the first call, caches empty, with what it imports that the bench itself has not

Cases: ``snp``, ``tdx``, ``gpu`` (report and chain) and ``gpu_rim`` (with RIM files of driver and VBIOS, made up in
either case: no real driver RIM that fits is at hand). ``tdx_dcap_ms`` is the part of ``tdx_ms`` inside dcap-qvl, which
checks some of the signatures more than once. No network.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from lxml import etree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cordon.attest import nvgpu, snp, tdx
from cordon.attest.dcap import collateral as collaterals
from cordon.attest.dcap import quote as quotes
from cordon.attest.dcap import reports
from cordon.attest.dcap.policy import TdxPolicy
from cordon.attest.nvgpu import GpuPolicy, chain, spdm
from cordon.attest.snp import SnpPolicy, certificates, revocation
from cordon.attest.verdict import Appraisal
from fakes import amd_pki, intel_pki
from fakes.nvidia_pki import NONCE, NvidiaPki

POLICIES = Path(__file__).resolve().parents[2] / "cc_config" / "policy"
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
DS = "{http://www.w3.org/2000/09/xmldsig#}"


@dataclass(frozen=True)
class Case:
    """``bare``: each verifies one signature. ``cached``: kept in the process, so paid for by the first call only."""

    name: str
    source: str
    ours: Callable[[], Appraisal]
    bare: list[Callable[[], Any]]
    signatures: str
    cached: str


def shipped(name: str, section: str, schema: type[Any], **changes: Any) -> Any:
    """A section of a shipped policy, with the measurements of this evidence."""
    body = yaml.safe_load((POLICIES / f"{name}.yml").read_text())[section]
    return msgspec.convert({**body, **changes}, schema)


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> Callable[[], Any]:
    """Verifies the signature of ``issuer`` on ``certificate``, with everything decoded before."""
    return signed(
        issuer, certificate.signature, certificate.tbs_certificate_bytes, certificate.signature_hash_algorithm
    )


def signed(issuer: x509.Certificate, signature: bytes, data: bytes, digest: Any) -> Callable[[], Any]:
    key = issuer.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return functools.partial(key.verify, signature, data, PSS, hashes.SHA384())
    return functools.partial(key.verify, signature, data, ec.ECDSA(digest))


def listed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> Callable[[], Any]:
    return signed(issuer, crl.signature, crl.tbs_certlist_bytes, crl.signature_hash_algorithm)


def raw(key: Any, signature: bytes, data: bytes, digest: Any) -> Callable[[], Any]:
    """Verifies an ECDSA signature r || s, big-endian."""
    half = len(signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    return functools.partial(key.verify, encode_dss_signature(r, s), data, ec.ECDSA(digest))


# -- SEV-SNP ---------------------------------------------------------------------------------------------------------


def snp_case(vectors: Path | None) -> Case:
    crl = roots = None
    if vectors is not None:
        folder = vectors / "attestation" / "snp" / "genoa-v5-routex"
        report, vek, now = (folder / "report.bin").read_bytes(), (folder / "chain.pem").read_bytes(), _at("2026-03-01")
    else:
        amd_pki.rsa_key = functools.cache(lambda name: rsa.generate_private_key(65537, 4096))  # as long as AMD's
        now, roots = amd_pki.NOW, {"Genoa": amd_pki.anchor("Genoa")}
        report, crl = amd_pki.report("Genoa", "vcek", 5), amd_pki.crl("Genoa")
        vek = amd_pki.pem(amd_pki.vek("Genoa", "vcek"))
    parsed = snp.Report.parse(report)
    policy = shipped("snp", "snp", SnpPolicy, measurement=[parsed.measurement.hex()])
    leaf = certificates.load(vek, "vek")[0]
    anchor = (roots or certificates.pinned())["Genoa"]
    bare = [
        functools.partial(
            leaf.public_key().verify, encode_dss_signature(parsed.r, parsed.s), parsed.signed, ec.ECDSA(hashes.SHA384())
        ),
        issued(leaf, anchor.ask),
    ]
    if crl is not None:
        bare.append(listed(revocation.load(crl), anchor.ark))
    given: dict[str, Any] = {"vek": vek, "crl": crl, "now": now, "policy": policy, "roots": roots}
    return Case(
        "snp",
        _source(vectors),
        lambda: snp.verify(report, report_data=parsed.report_data, **given),
        bare,
        "ECDSA P-384: report; RSA-PSS 4096: VCEK by ASK" + ("" if crl is None else ", CRL by ARK"),
        "certificates as decoded from the same bytes; the verdict on ASK and ARK under the pinned ARK",
    )


# -- TDX -------------------------------------------------------------------------------------------------------------


def tdx_case(vectors: Path | None) -> tuple[Case, Callable[[], Any]]:
    """The case, and what dcap-qvl does of it."""
    if vectors is not None:
        folder = vectors / "attestation" / "tdx" / "dcap-qvl"
        quote, collateral = ((folder / name).read_bytes() for name in ("tdx_quote", "tdx_quote_collateral.json"))
        now, root = _at("2025-07-01"), None
    else:
        pki = intel_pki.IntelPki()
        quote, collateral, now, root = pki.quote(), pki.collateral(), intel_pki.NOW, pki.root
    parsed, held = quotes.parse(quote), collaterals.parse(collateral)
    td = reports.td_report(parsed.body)
    names = {name: [getattr(td, name).hex()] for name in ("mr_td", "rtmr1", "rtmr2")}
    policy = shipped("tdx", "tdx", TdxPolicy, mr_service_td="any", **names)
    leaf, ca, top = x509.load_pem_x509_certificates(parsed.certification_data.rstrip(b"\0"))
    signer, above = x509.load_pem_x509_certificates(held.file.tcb_info_issuer_chain.encode())
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + parsed.attestation_key)
    sha256 = hashes.SHA256()
    bare = [
        raw(key, parsed.signature, parsed.signed, sha256),
        raw(leaf.public_key(), parsed.qe_report_signature, parsed.qe_report, sha256),
        issued(leaf, ca),
        issued(ca, top),
        raw(signer.public_key(), held.tcb_info_signature, held.file.tcb_info.encode(), sha256),
        raw(signer.public_key(), held.qe_identity_signature, held.file.qe_identity.encode(), sha256),
        issued(signer, above),
        listed(x509.load_der_x509_crl(held.root_ca_crl), top),
        listed(x509.load_der_x509_crl(held.pck_crl), ca),
    ]
    anchor = top.public_bytes(Encoding.DER)
    end = len(quote) - len(parsed.tail)
    case = Case(
        "tdx",
        _source(vectors),
        lambda: tdx.verify(quote, collateral=collateral, now=now, policy=policy, report_data=td.report_data, root=root),
        bare,
        "ECDSA P-256: quote, QE report, PCK, PCK CA, TCB info, QE identity, their signer, root CRL, PCK CRL",
        "collateral file, PCK chain and PCK certificate as decoded from the same bytes",
    )
    return case, lambda: collaterals.judge(quote[:end], held, now, anchor)


# -- GPUs ------------------------------------------------------------------------------------------------------------


def gpu_case(vectors: Path | None) -> Case:
    if vectors is not None:
        folder = vectors / "attestation" / "nvgpu" / "attestation-sdk-samples"
        report = nvgpu.decode_report((folder / "hopperAttestationReport_spdm.txt").read_bytes())
        links, now, roots = (folder / "hopperCertChain_spdm.txt").read_bytes(), _at("2026-06-01"), None
        return _gpu("gpu", _source(vectors), report, links, (), now, roots)
    pki = NvidiaPki()
    device = pki.device()
    return _gpu("gpu", _source(None), device.report(NONCE), device.chain, (), _at("2026-06-01"), pki.roots)


def gpu_rim_case() -> Case:
    pki = NvidiaPki()
    device = pki.device()
    rims = (pki.rim("driver"), pki.rim("vbios"))
    return _gpu("gpu_rim", _source(None), device.report(NONCE), device.chain, rims, _at("2026-06-01"), pki.roots)


def _gpu(
    name: str, source: str, report: bytes, certificates_: bytes, rims: tuple[bytes, ...], now: datetime, roots: Any
) -> Case:
    policy = shipped("snp-h100", "gpu", GpuPolicy, **({} if rims else {"rim": "any"}))
    trusted = nvgpu.device.anchors(roots)
    parsed, links = spdm.parse(report), chain.decode(certificates_)
    bare = [
        raw(links[0].key, parsed.signature, parsed.signed, hashes.SHA384()),
        *_path([link.certificate for link in links], trusted.device),
    ]
    for each in rims:
        signature = etree.fromstring(each)[-1]
        signer = [
            x509.load_der_x509_certificate(b64decode(text.text)) for text in signature.iter(f"{DS}X509Certificate")
        ]
        info = etree.tostring(signature[0], method="c14n")
        value = raw(signer[0].public_key(), b64decode(signature[1].text), info, hashes.SHA384())
        bare += [value, *_path(signer, trusted.rim)]
    return Case(
        name,
        source,
        lambda: nvgpu.verify(
            report, certificates_, nonce=parsed.request_nonce, rims=rims, now=now, policy=policy, roots=roots
        ),
        bare,
        f"{len(bare)} of ECDSA P-384: report and chain"
        + (", and of each RIM file the XML's and its chain" if rims else ""),
        "nothing",
    )


def _path(links: list[x509.Certificate], root: x509.Certificate) -> list[Callable[[], Any]]:
    path = [link for link in links if link != root]
    return [issued(each, issuer) for each, issuer in zip(path, [*path[1:], root], strict=True)]


# -- measuring -------------------------------------------------------------------------------------------------------


def _at(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def _source(vectors: Path | None) -> str:
    return "made up" if vectors is None else "real"


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds of one run."""
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def forget() -> None:
    """Empty every cache of the verifiers."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cordon.attest"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def measure(case: Case, repeat: int, beside: Callable[[], Any] | None = None) -> dict[str, float]:
    """Figures of one case; ``beside``: measured in the same turns."""

    def bare() -> None:
        for verify in case.bare:
            verify()

    forget()
    first = timed(case.ours)
    appraisal = case.ours()
    assert appraisal.genuine, appraisal.codes
    bare()
    turns = []
    for _ in range(repeat):
        turn = [timed(case.ours), timed(bare), 0.0 if beside is None else timed(beside)]
        forget()
        turns.append([*turn, timed(case.ours)])  # which fills the caches for the next turn
    ours, floor, other, uncached = (median(column) for column in zip(*turns, strict=True))
    figures = {"ms": ours, "bare_ms": floor, "ratio": ours / floor, "uncached_ms": uncached, "first_ms": first}
    if beside is not None:
        figures["dcap_ms"] = other
    return {f"{case.name}_{name}": round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--repeat", type=int, default=101, help="runs of each path (default: 101)")
    args = parser.parse_args()
    named = os.environ.get("CORDON_VECTORS")
    vectors = Path(named) if named else None
    quoted, dcap = tdx_case(vectors)
    cases: list[tuple[Case, Callable[[], Any] | None]] = [
        (snp_case(vectors), None),
        (quoted, dcap),
        (gpu_case(vectors), None),
        (gpu_rim_case(), None),
    ]
    result: dict[str, Any] = {}
    for case, beside in cases:
        result |= measure(case, args.repeat, beside)
    result["inputs"] = {
        case.name: {
            "evidence": case.source,
            "verdict": case.ours().verdict,
            "bare": case.signatures,
            "cached": case.cached,
        }
        for case, _ in cases
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name != "inputs":
            print(f"{name:18} {value}")
    for name, said in result["inputs"].items():
        print(
            f"{name}: {said['evidence']} evidence ({said['verdict']}). Bare: {said['bare']}. Cached: {said['cached']}."
        )


if __name__ == "__main__":
    main()
