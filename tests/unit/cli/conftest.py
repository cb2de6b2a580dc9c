"""Evidence of made-up vendors as files, and commands that trust these vendors."""

import json
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fakes import amd_pki, azure_pki, intel_pki, nvidia_pki

JUNE = "2026-06-01T00:00:00Z"
JANUARY = "2026-01-15T12:00:00Z"


@pytest.fixture(scope="session")
def evidence(tmp_path_factory):
    """A folder of genuine evidence; ``verify[kind]`` are the arguments that verify it, ``roots`` whom to trust."""
    folder = tmp_path_factory.mktemp("evidence")
    intel, nvidia = intel_pki.IntelPki(), nvidia_pki.NvidiaPki()
    device, switch = nvidia.device(), nvidia.device("ls10", 2)
    vek = amd_pki.vek("Milan", "vcek").public_bytes(Encoding.DER)

    def put(name, data):
        (folder / name).write_bytes(data)
        return str(folder / name)

    def shown(*devices):
        parts = [each.evidence("x") for each in devices]
        return json.dumps(
            [
                {"arch": each["arch"], "evidence": each["report"], "certificate": each["chain"], "nonce": nonce}
                for each in parts
            ]
        ).encode()

    nonce = nvidia_pki.NONCE.hex()
    claims = azure_pki.encode(azure_pki.runtime_claims())
    inner = amd_pki.report("Milan", "vcek", 3, report_data=azure_pki.report_data(claims))
    now = amd_pki.NOW
    files = {
        "snp": put("report.bin", amd_pki.report("Milan", "vcek", 5)),
        "vek": put("vek.der", vek),
        "crl": put("amd.crl", amd_pki.crl("Milan")),
        "tdx": put("td-quote.bin", intel.quote()),
        "tdx collateral": put("td-collateral.json", intel.collateral()),
        "sgx": put("sgx-quote.bin", intel.quote(version=3)),
        "sgx collateral": put("sgx-collateral.json", intel.collateral(False)),
        "gpu": put("gpu.bin", device.report()),
        "gpu chain": put("gpu.pem", device.chain),
        "gpu evidence": put("gpus.json", shown(device, switch)),
        "twice": put("twice.json", shown(device, device)),
        "driver rim": put("driver.xml", nvidia.rim()),
        "vbios rim": put("vbios.xml", nvidia.rim("vbios")),
        "nras": put("nras.json", nvidia.token()),
        "nras keys": put("nras-jwks.json", nvidia.jwks),
        "hcl": put("hcl.bin", azure_pki.hcl_report(inner, claims)),
        "maa": put("maa.jwt", azure_pki.token(azure_pki.token_claims(now, b"n" * 32)) + b"\n"),
        "maa keys": put("maa-jwks.json", azure_pki.jwks("maa")),
    }
    amd = ["--vek", files["vek"]]
    verify = {
        "snp": ["snp", "--report", files["snp"], *amd, "--crl", files["crl"], "--at", JUNE],
        "tdx": ["tdx", "--quote", files["tdx"], "--collateral", files["tdx collateral"], "--at", JANUARY],
        "sgx": ["sgx", "--quote", files["sgx"], "--collateral", files["sgx collateral"], "--at", JANUARY],
        "gpu": ["gpu", "--report", files["gpu"], "--chain", files["gpu chain"], "--at", JUNE],
        "gpus": ["gpu", "--evidence", files["gpu evidence"], "--nonce", nonce, "--at", JUNE],
        "az-snp": ["az-snp", "--report", files["hcl"], *amd, "--at", JUNE],
        "nras": ["nras", "--token", files["nras"], "--jwks", files["nras keys"], "--at", JUNE],
        "maa": ["maa", "--token", files["maa"], "--jwks", files["maa keys"], "--at", JUNE],
    }
    roots = {
        **{
            f"amd_{product.lower()}_{name}": getattr(amd_pki.anchor(product), role)
            for product in amd_pki.PRODUCTS
            for name, role in (("ark", "ark"), ("ask", "ask"), ("asvk", "asvk"))
        },
        "intel_sgx_root": intel.root,
        "nvidia_device_root": nvidia.root.certificate,
        "nvidia_rim_root": nvidia.rim_root.certificate,
    }
    return SimpleNamespace(folder=folder, files=files, verify=verify, roots=roots, nonce=nonce, nvidia=nvidia)


@pytest.fixture
def trusted(evidence, monkeypatch):
    """The made-up vendors' roots in place of the real ones, for one test."""
    from cordon.attest.snp import certificates

    monkeypatch.setattr("cordon.attest.roots.load", evidence.roots.__getitem__)
    certificates.pinned.cache_clear()
    yield evidence
    certificates.pinned.cache_clear()
