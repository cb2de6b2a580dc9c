"""``cordon attest explain``: every kind of evidence in words, and never a verdict."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon import signing
from cordon.attest import software
from cordon.attest.appraise import make_evidence, parent_context
from cordon.attest.claims import Report
from cordon.attest.keys import ProcessKeys
from cordon.cli import main
from cordon.cli.attest.kinds import recognise
from cordon.cli.attest.says import WORDS
from fakes import amd_pki, azure_pki

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = b"n" * 32


def explain(capsys, path, *more):
    code = main(["attest", "explain", str(path), *map(str, more)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out.isascii()
    return code, out, err


KINDS = [
    # file of the fixture, title, more arguments, words that must be there
    ("snp", "snp", [], ["product", "Milan", "debug", "off", "VMPL", "0, the most", "13" * 48, "give the chip's"]),
    ("snp", "snp", ["--vek", "vek", "--crl", "crl"], ["Checked here, and true", "report_signature", "revoked"]),
    ("tdx", "tdx", [], ["mr_td", "rtmr3", "debug", "quote_signature", "no collateral was given"]),
    ("tdx", "tdx", ["--collateral", "tdx collateral"], ["status UpToDate"]),
    ("sgx", "sgx", [], ["mr_enclave", "mr_signer", "isv_svn"]),
    ("gpu", "gpu", [], ["550.90.07", "96.00.9F.00.01", "single GPU", "not said by such a report", "(--chain)"]),
    ("gpu", "gpu", ["--chain", "gpu chain"], ["Checked here, and true", "report_signature"]),
    ("gpu evidence", "gpu", [], ["0: driver", "1: driver", "none (an NVSwitch has none)", "0: report_signature"]),
    (
        "hcl",
        "azure",
        [],
        ["AMD SEV-SNP", "VM configuration", "runtime_data", "inside: measurement", "no VEK was given"],
    ),
    ("hcl", "azure", ["--vek", "vek"], ["report_signature", "no quote of it"]),
    ("maa", "maa", [], ["iss", azure_pki.ISSUER, "x-ms-", "key set (--jwks)"]),
    ("nras", "nras", [], ["overall: iss", "GPU-0: ", "key set (--jwks)"]),
]


@pytest.mark.parametrize(("name", "title", "more", "wanted"), KINDS)
def test_each_kind_in_words(trusted, capsys, name, title, more, wanted):
    more = [trusted.files.get(each, each) for each in more]
    at = "2026-01-15T12:00:00Z" if title in ("tdx", "sgx") else "2026-06-01T00:00:00Z"
    code, out, err = explain(capsys, trusted.files[name], *more, "--at", at)
    assert (code, err) == (0, "")
    assert out.startswith(f"{trusted.files[name]}: {WORDS[title].title}\n")
    flat = " ".join(out.split())
    assert [each for each in wanted if each not in flat] == []
    for part in ("It says", "NOT checked here", "no policy was given", "It never proves", "For a verdict:"):
        assert part in out
    assert "FALSE" not in out
    for sentence in WORDS[title].never:
        assert " ".join(sentence.split()) in flat


def test_the_command_to_run_next_can_be_run(trusted, capsys):
    """Its options are those of the real command."""
    for name in ("snp", "tdx", "sgx", "gpu", "gpu evidence", "hcl", "nras", "maa"):
        command = explain(capsys, trusted.files[name])[1].splitlines()[-1].split()
        assert command[:3] == ["cordon", "attest", "verify"]
        assert trusted.files[name] in command
        for placeholder in ("VCEK", "POLICY", "COLLATERAL", "CHAIN", "QUOTE", "KEYS", "RIM..."):
            command = [trusted.files["vek"] if each == placeholder else each for each in command]
        command = ["00" * 32 if each == "NONCE" else each for each in command]
        assert main(command[1:]) == 3  # not SystemExit: a policy that is none, but no unknown option
        assert "policy_format" in capsys.readouterr().err


def test_what_is_false_is_said_loudly(evidence, capsys):
    """The same report, and the real AMD's root."""
    more = ("--vek", evidence.files["vek"], "--at", "2026-06-01T00:00:00Z")
    code, out, _ = explain(capsys, evidence.files["snp"], *more)
    assert code == 0, "explain gives no verdict"
    assert "Checked here, and FALSE: don't trust it" in out


def test_a_debug_guest_is_said_to_be_readable(tmp_path, capsys):
    path = tmp_path / "report.bin"
    path.write_bytes(amd_pki.report("Milan", "vcek", 3, policy=1 << 17 | 1 << 19))
    assert "ON: whoever runs the host can read and change its memory" in explain(capsys, path)[1]


# -- Cordon's own evidence ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mtls():
    return generate_private_key(65537, 2048)


def _evidence(attester, mtls):
    context = parent_context("hospital-a", "5" * 64, "6" * 64)
    return make_evidence(attester, context, NONCE, ProcessKeys.generate(), mtls)


def test_software_evidence_is_said_to_prove_nothing(tmp_path, capsys, mtls):
    root = software.make_root("test", NOW)
    attester = software.SoftwareAttester(software.issue(root, "hospital-a", NOW))
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(_evidence(attester, mtls)))
    code, out, _ = explain(capsys, path)
    assert code == 0
    assert "software, proves nothing about hardware" in out
    assert "hospital-a" in out
    assert NONCE.hex() in out
    assert "genuine AMD" not in out
    assert "genuine Intel" not in out


class _Snp:
    """An attester with the made-up AMD's chip."""

    type = "snp"

    def report(self, report_data):
        vek = amd_pki.pem(amd_pki.vek("Milan", "vcek"))
        return Report(amd_pki.report("Milan", "vcek", 3, report_data=report_data), {"vek": vek})

    def gpu_evidence(self, nonce):
        return None


def test_hardware_evidence_is_explained_with_the_report_inside(trusted, tmp_path, capsys, mtls):
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(_evidence(_Snp(), mtls)))
    code, out, _ = explain(capsys, path, "--at", "2026-06-01T00:00:00Z")
    assert code == 0
    assert "Inside it: AMD SEV-SNP attestation report" in out
    assert "Checked here, and true" in out
    assert "need its mTLS key" in " ".join(out.split())
    assert "software, proves nothing" not in out


@pytest.mark.parametrize("kind", ["other", "tdx"])
def test_evidence_that_is_not_what_it_says(tmp_path, capsys, mtls, kind):
    class Other(_Snp):
        type = kind

    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(_evidence(Other(), mtls)))
    code, out, err = explain(capsys, path)
    assert (code, out) == (3, "")
    assert err.startswith("cordon: ")


def test_evidence_of_a_version_that_is_not_read_here(tmp_path, capsys, mtls):
    path = tmp_path / "evidence.json"
    old = signing.sign(mtls, "application/vnd.cordon.evidence.v1+json", {"v": 1})
    path.write_text(json.dumps(old))
    assert explain(capsys, path)[2].startswith("cordon: evidence_version: ")


# -- what is no evidence --------------------------------------------------------------------------------------------

OTHER = [
    ("vek", "a certificate or revocation list in DER"),
    ("gpu chain", "a certificate or key in PEM"),
    ("crl", "a certificate or revocation list in DER"),
    ("driver rim", "an XML file, such as a RIM"),
    ("tdx collateral", "Intel's collateral"),
    ("nras keys", "a key set"),
    ("maa keys", "a key set"),
]


@pytest.mark.parametrize(("name", "wanted"), OTHER)
def test_what_is_no_evidence_is_called_by_its_name(evidence, capsys, name, wanted):
    code, out, err = explain(capsys, evidence.files[name])
    assert (code, out) == (3, "")
    assert err.startswith("cordon: evidence_unknown: ")
    assert wanted in err
    assert err.count("\n") == 1


def test_a_policy_is_no_evidence(repo_root, capsys):
    code, _, err = explain(capsys, repo_root / "cc_config" / "policy" / "software.yml")
    assert code == 3
    assert "a policy or another YAML file" in err


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"{", b"[]", b"{}", b"[1]", b"null", b"[" * 100_000, b"\xff\xfe", b"a.b.c", b"e30.W10.x", b"abc"]
    + [
        json.dumps(tree).encode()
        for tree in (
            *([["JWT"], {}], [["JWT", 5], {}], [["JWT", "x"], {}], [["JWT", "e30.e30.x"], {"GPU-0": "no token"}]),
            *([["JWT", "e30.e30.x"]], [["JWT", "e30.e30.x"], []], [["JWT", "e30.e30.x"], {"GPU-0": None}]),
            *({"evidence": 1, "certificate": 1}, [{"evidence": "", "certificate": ""}], [{}], [[]], [["JWT"]]),
            *({"hcl_report": 1}, {"report": [], "quote": {}, "vcek": ""}, {"payloadType": 1}),
            {"payloadType": "application/vnd.cordon.evidence.v2+json"},
            {"payloadType": "application/vnd.cordon.evidence.v2+json", "payload": "e30=", "signatures": []},
        )
    ],
)
def test_what_cannot_be_read(tmp_path, capsys, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    code, out, err = explain(capsys, path)
    assert (code, out, err.count("\n")) == (3, "", 1)


def test_part_of_an_nras_token_is_not_taken_for_all_of_it(evidence, tmp_path, capsys):
    path = tmp_path / "part"
    tree = json.loads(Path(evidence.files["nras"]).read_text())
    claims = {"iss": "https://nras.attestation.nvidia.com"}
    path.write_text(tree[0][1].split(".")[0] + "." + azure_pki.b64url(json.dumps(claims).encode()) + ".x")
    assert "whole answer" in explain(capsys, path)[2]


def test_a_terminal_gets_nothing_that_it_would_obey(tmp_path, capsys):
    """Evidence is a stranger's text: no escape sequence of it, and no line break, reaches the terminal."""
    claims = {"iss": "https://x.attest.azure.net", "note\n\x1b[2J": "\x1b]0;pwned\x07\u202e\nverdict: pass"}
    path = tmp_path / "token"
    path.write_text("e30." + azure_pki.b64url(json.dumps(claims).encode()) + ".AA")
    code, out, _ = explain(capsys, path)
    assert code == 0
    assert all(each == "\n" or each.isprintable() for each in out)
    assert not [line for line in out.splitlines() if line.startswith("verdict")]


@pytest.mark.parametrize("name", ["snp", "tdx", "sgx", "gpu", "gpu evidence", "hcl", "nras", "maa"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_evidence_is_explained_or_refused(evidence, tmp_path, capsys, name, data):
    """Whatever a stranger's file holds: exit 0 or 3, never an internal error."""
    whole = bytearray(Path(evidence.files[name]).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole)] * 3 + [len(whole) // 2, len(whole) - 1]))
    path = tmp_path / "file"
    path.write_bytes(bytes(whole[:cut]))
    assert explain(capsys, path)[0] in (0, 3)


# -- real evidence --------------------------------------------------------------------------------------------------

VECTORS = {
    "snp": ["snp/*/report.bin"],
    "tdx": ["tdx/*/tdx_quote*[!n]", "tdx/*/*quote*.dat", "tdx/*/*.hex", "tdx/*/td-quote.bin"],
    "sgx": ["tdx/dcap-qvl/sgx_quote", "tdx/trustee/occlum_quote.dat"],
    "gpu-report": ["nvgpu/*/*Report*.txt"],
    "gpu-evidence": ["nvgpu/attestation-sdk-evidence/*.json"],
    "hcl": ["*/azure-vtpm-trustee/hcl-report.bin"],
    "azure-evidence": ["*/azure-vtpm-trustee/evidence-*.json"],
    "nras": ["nvgpu/*/*_detached_eat.json"],
}


def test_real_evidence_of_each_kind_is_recognised_and_explained(vectors, capsys):
    root = vectors / "attestation"
    for kind, patterns in VECTORS.items():
        paths = [path for pattern in patterns for path in root.glob(pattern) if "collateral" not in path.name]
        assert paths, kind
        for path in paths:
            found = recognise(path.read_bytes())[0]
            assert found == kind or (kind == "tdx" and path.name == "occlum_quote.dat"), path
            code, out, err = explain(capsys, path, "--at", "2026-06-01T00:00:00Z")
            assert (code, err) == (0, ""), path
            assert "NOT checked here" in out
