"""What the CPU and cloud authorizers of nvflare 2.9.0 let through (nvflare/app_opt/confidential_computing/*.py).

Each has its attack and a control that shows the authorizer, and the stand-in that it calls, at honest work. Beside it
stands what Cordon's verifier says to the same bytes. These verifiers are pure: what calls them, with whose nonce and
which policy, is in test_stock_cc_manager.py and test_impostor_evidence.py.
"""

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from nvflare.app_opt.confidential_computing.aci_authorizer import ACIAuthorizer
from nvflare.app_opt.confidential_computing.az_cvm_authorizer import AZCVMAuthorizer
from nvflare.app_opt.confidential_computing.mock_authorizer import MockAuthorizer
from nvflare.app_opt.confidential_computing.snp_authorizer import SNPAuthorizer
from nvflare.app_opt.confidential_computing.tdx_authorizer import TDXAuthorizer

from cordon.attest import snp, tdx
from cordon.attest.azure.maa import verify as verify_maa
from cordon.errors import AttestError, ConfigError
from fakes import snpguest
from fakes.stock_flare import StockFederation

NOT_A_CERTIFICATE = b"nobody looks at this file\n"


# -- AMD SEV-SNP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def snp_host(tmp_path, monkeypatch):
    """Makes (SNPAuthorizer, log of its `snpguest` commands) of a host that gets ``vcek`` from the key server."""
    monkeypatch.chdir(tmp_path)  # the authorizer writes into the current folder

    def make(vcek):
        program, log = snpguest.install(tmp_path, vcek)
        certificates = tmp_path / "certs"
        certificates.mkdir(exist_ok=True)
        for name in ("ark.pem", "ask.pem"):
            (certificates / name).write_bytes(NOT_A_CERTIFICATE)
        return SNPAuthorizer(amd_certs_dir=str(certificates), snpguest_binary=str(program), max_retries=1), log

    return make


def _token(report):
    return base64.b64encode(report)


def _changed(report, at):
    return report[:at] + bytes([report[at] ^ 1]) + report[at + 1 :]


def _failed(appraisal):
    return {code for code, result, _ in appraisal.codes if result == "fail"}


def test_control_stock_snp_refuses_a_changed_report(snp_host):
    report, vcek = snpguest.forge_report()
    authorizer, _ = snp_host(vcek)
    assert not authorizer.verify(_token(_changed(report, 0x90)))
    assert not authorizer.verify(_token(b"garbage"))


def test_a3_stock_snp_takes_a_key_that_amd_never_certified(snp_host):
    """A report signed by a key that certifies itself; ARK and ASK on the verifier's disk are no certificates at all.

    snp_authorizer.py:160-192 fetches the CA's certificates (163, 194-203) and never asks `snpguest verify certs`, the
    command that looks at the chain; line 172 asks for the report's signature by whatever is in vcek.pem. What stands
    between a forger and a pass is the TLS connection to the key server and write access to a folder. The second half
    of the test needs no stand-in: it is the list of commands that FLARE runs.
    """
    report, vcek = snpguest.forge_report()
    authorizer, log = snp_host(vcek)
    assert authorizer.verify(_token(report))
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each[:2] for each in commands] == [
        ["display", "report"],
        ["fetch", "vcek"],
        ["verify", "attestation"],
        ["display", "report"],
    ]
    # no option for measurement, host data, report data, id keys or minimum TCB: two paths, and that is all
    assert len(next(each for each in commands if each[0] == "verify")) == 4


def test_a3_cordon_snp_wants_a_key_that_amd_certified():
    """The same report and certificate: all is in order but the signature that only AMD can make."""
    report, vcek = snpguest.forge_report()
    appraisal = snp.verify(report, vek=vcek, now=datetime.now(UTC))
    assert not appraisal.genuine
    assert _failed(appraisal) == {"vek_signature"}


def test_debug_stock_snp_takes_a_guest_that_its_host_can_read(snp_host, vectors):
    """A report that AMD hardware made and signed, of a guest whose policy allows the host to debug (decrypt) it.

    Nothing in snp_authorizer.py:160-192 reads policy, VMPL, measurement or report_data; `snpguest verify attestation`
    checks signature, TCB and chip.
    """
    folder = vectors / "attestation" / "snp" / "milan-v2-debug-gosevguest"
    report = (folder / "report.bin").read_bytes()
    assert int.from_bytes(report[0x08:0x10], "little") >> 19 & 1  # POLICY.DEBUG
    vcek = base64.encodebytes((folder / "vcek.der").read_bytes())
    authorizer, _ = snp_host(b"-----BEGIN CERTIFICATE-----\n" + vcek + b"-----END CERTIFICATE-----\n")
    assert not authorizer.verify(_token(_changed(report, 0x08)))  # control
    assert authorizer.verify(_token(report))


def test_debug_cordon_snp_refuses_it(vectors):
    """Genuine it is, and refused all the same, with or without a policy."""
    folder = vectors / "attestation" / "snp" / "milan-v2-debug-gosevguest"
    report, vcek = ((folder / name).read_bytes() for name in ("report.bin", "vcek.der"))
    appraisal = snp.verify(report, vek=vcek, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert appraisal.genuine
    assert appraisal.verdict == "fail"
    assert _failed(appraisal) == {"debug"}


def test_f4_stock_snp_takes_a_report_again_after_a_restart(snp_host):
    """The nonce is the prover's own choice (snp_authorizer.py:147); used ones are remembered in memory (utils.py:21).

    So a report, whoever recorded it, is good once in each life of the verifier's process, and again after 2000 others.
    """
    report, vcek = snpguest.forge_report()
    authorizer, _ = snp_host(vcek)
    assert authorizer.verify(_token(report))
    assert not authorizer.verify(_token(report))
    for number in range(authorizer.seen_nonce_history.history.maxlen):  # as 2000 reports of others would
        authorizer.seen_nonce_history.add(str(number))
    assert authorizer.verify(_token(report))
    restarted, _ = snp_host(vcek)
    assert restarted.verify(_token(report))


def test_f4_cordon_snp_wants_the_verifiers_own_bytes(vectors):
    """A genuine report over other 64 bytes than those that hold the verifier's nonce. Who remembers which nonce, also
    across restarts: test_stock_cc_manager.py."""
    folder = vectors / "attestation" / "snp" / "milan-v2-virtee"
    report, vcek = ((folder / name).read_bytes() for name in ("report.bin", "vcek.der"))
    at = {"now": datetime(2026, 6, 1, tzinfo=UTC)}
    assert _failed(snp.verify(report, vek=vcek, report_data=report[0x50:0x90], **at)) == set()
    appraisal = snp.verify(report, vek=vcek, report_data=b"\x07" * 64, **at)
    assert appraisal.verdict == "fail"
    assert _failed(appraisal) == {"report_data"}


# -- Intel TDX -------------------------------------------------------------------------------------------------------


def _tdx(folder, script):
    program = folder / "tdx-cli"
    program.write_text(script)
    program.chmod(0o755)
    return TDXAuthorizer(tdx_cli_command=str(program), config_dir=str(folder))


def test_control_stock_tdx_refuses_when_the_program_says_error(tmp_path):
    assert not _tdx(tmp_path, "#!/bin/sh\necho 'Error: bad quote' >&2\nexit 1\n").verify("garbage")


def test_t1_stock_tdx_takes_garbage_when_the_program_fails(tmp_path):
    """The program that verifies is `/bin/false`. tdx_authorizer.py:72 drops its exit status; lines 77-84 pass whatever
    has no "Error:" on stderr: a crash, a missing configuration, an older program with another wording."""
    assert TDXAuthorizer(tdx_cli_command="/bin/false", config_dir=str(tmp_path)).verify("garbage") is True


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nkill -SEGV $$\n",
        "#!/bin/sh\necho 'error: no such host' >&2\nexit 1\n",
        "#!/bin/sh\necho 'usage: verify --config FILE' >&2\nexit 2\n",
        "#!/bin/sh\necho 'Error: quote is invalid'\nexit 1\n",  # to stdout
    ],
    ids=["crash", "network", "usage", "stdout"],
)
def test_t1_stock_tdx_takes_garbage_whatever_went_wrong(tmp_path, script):
    """As above, for ways in which a real program fails."""
    assert _tdx(tmp_path, script).verify("garbage") is True


@pytest.mark.parametrize("quote", [b"", b"garbage", b"\0" * 632, b"\xff" * 5000])
def test_t1_cordon_tdx_has_no_program_that_could_fail(quote):
    """The quote is parsed and judged in the process: what cannot be read has no verdict at all, and a stable code."""
    with pytest.raises(ConfigError, match=r"^quote_(format|version): "):
        tdx.verify(quote, collateral=None, now=datetime.now(UTC))


def test_t1_cordon_tdx_passes_nothing_for_want_of_collateral(vectors):
    """A genuine quote without Intel's collateral, as when the network is down: not genuine, and no pass."""
    quote = (vectors / "attestation" / "tdx" / "dcap-qvl" / "tdx_quote").read_bytes()
    appraisal = tdx.verify(quote, collateral=None, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert not appraisal.genuine
    assert appraisal.verdict != "pass"
    with pytest.raises(AttestError):
        appraisal.require()


def test_a6_stock_tdx_that_breaks_lets_a_site_in(tmp_path):
    """A token with a NUL in it cannot be an argument of a program (line 71), nor can a program run that is not there.

    ``verify`` raises ValueError or OSError, which cc_manager.py:298-304 does not expect; FLARE logs it, and the site is
    registered (see test_stock_cc_manager.py, A6).
    """
    for number, (command, token) in enumerate((("/bin/false", "\0"), ("/nowhere/tdx-cli", "garbage"))):
        federation = StockFederation(tmp_path / str(number), without=["site-1"])
        federation.server.manager.cc_verifiers["x-tdx"] = TDXAuthorizer(command, str(tmp_path))
        info = [{"_cc_token": token, "_cc_namespace": "x-tdx"}]
        assert federation.server.register("site-1", {"site-1": info})
        assert not federation.server.down


# -- Microsoft Azure -------------------------------------------------------------------------------------------------

MAA = "sharedeus2.eus2.attest.azure.net"


@pytest.fixture(scope="module")
def maa():
    """The region's shared attestation service: it signs for every tenant that asks."""
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def maa_keys(maa):
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(maa.public_key()))
    return json.dumps({"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]}).encode()


@pytest.fixture(params=[AZCVMAuthorizer, ACIAuthorizer], ids=["az_cvm", "aci"])
def azure(request, maa_keys, monkeypatch):
    """A stock Azure authorizer; the download of the service's keys is replaced, and nothing else."""
    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", lambda self: json.loads(maa_keys))
    return request.param(MAA)


def _maa_token(key, **claims):
    now = datetime.now(UTC)
    body = {"iss": f"https://{MAA}", "iat": now, "exp": now + timedelta(hours=8), **claims}
    return jwt.encode(body, key, algorithm="RS256", headers={"kid": "k1"})


def test_control_stock_azure_refuses_what_the_service_did_not_sign(azure, maa):
    stranger = generate_private_key(65537, 2048)
    assert not azure.verify(_maa_token(stranger))
    assert not azure.verify(_maa_token(maa, exp=datetime.now(UTC) - timedelta(minutes=1)))
    assert not azure.verify("garbage")


@pytest.mark.parametrize(
    "claims",
    [
        {"x-ms-isolation-tee": {"x-ms-attestation-type": "sevsnpvm", "x-ms-sevsnpvm-is-debuggable": True}},
        {"x-ms-attestation-type": "sgx", "x-ms-sgx-is-debuggable": True, "x-ms-sgx-mrsigner": "00" * 32},
        {"x-ms-attestation-type": "azurevm", "secureboot": False},
        {"x-ms-runtime": {"client-payload": {"nonce": "b3RoZXI="}}, "tenant": "somebody else's"},
    ],
    ids=["debug guest", "another's SGX", "plain VM", "another tenant"],
)
def test_azure_stock_takes_any_token_of_the_region(azure, maa, claims):
    """A tenant rents the cheapest machine in the region and has Microsoft's shared service attest that.

    az_cvm_authorizer.py:42-44 and aci_authorizer.py:57-59: ``if claims: return True``. No claim is looked at: not the
    type of TEE, the debug flag, the measurement, nor the nonce. And a token passes as often as it is shown.
    """
    token = _maa_token(maa, **claims)
    assert azure.verify(token)
    assert azure.verify(token)


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"x-ms-isolation-tee": {"x-ms-attestation-type": "sevsnpvm", "x-ms-sevsnpvm-is-debuggable": True}}, "debug"),
        ({"x-ms-attestation-type": "sgx", "x-ms-sgx-is-debuggable": True}, "attestation_type"),
        ({"x-ms-attestation-type": "azurevm", "secureboot": False}, "isolation_tee"),
        ({"x-ms-runtime": {"client-payload": {"nonce": "b3RoZXI="}}, "tenant": "somebody else's"}, "nonce"),
    ],
    ids=["debug guest", "another's SGX", "plain VM", "another tenant"],
)
def test_azure_cordon_reads_the_claims(maa, maa_keys, claims, code):
    """The same tokens, with this verifier's nonce: each fails, by the name of what is wrong with it."""
    token = _maa_token(maa, nbf=datetime.now(UTC) - timedelta(minutes=1), **claims)
    appraisal = verify_maa(token.encode(), jwks=maa_keys, nonce=b"n" * 32, now=datetime.now(UTC) + timedelta(seconds=1))
    assert appraisal.verdict == "fail"
    assert code in _failed(appraisal)
    assert not {"jwt_header", "jwt_key", "jwt_signature", "iat", "exp", "nbf"} & _failed(appraisal)


# -- mock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "garbage", None, 7])
def test_mock_stock_takes_anything(token):
    """mock_authorizer.py:24-25 is ``return True``, and ships in the package that production installs.

    (That stock provisioning takes ``compute_env: mock`` in production: test_stock_provisioning.py.)
    """
    assert MockAuthorizer().verify(token)
