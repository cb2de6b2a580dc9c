"""What GPUAuthorizer of nvflare 2.9.0 lets through (nvflare/app_opt/confidential_computing/gpu_authorizer.py).

It calls NVIDIA's Python SDK, which cannot be installed beside nvflare 2.9.0: every nv-attestation-sdk since 2.1 pins
cryptography 43, nvflare 2.9.0 wants 45 or newer. So the authorizer runs here on one of two things, named in each test:

* ``strict``: a stand-in with the SDK's calls, and *more* checks than the SDK makes of a token. What passes it has
  passed FLARE's own code.
* ``sdk``: the real module of SDK 2.7.3, out of a folder that CORDON_NVIDIA_SDK names, made by
  ``pip install --no-deps --target FOLDER nv-attestation-sdk==2.7.3``. G1 and G2 are the SDK's own omissions, so a
  stand-in for it would prove nothing, and they run on it alone. Replaced are its reading of local GPUs, which
  verification does not use, and the download of the service's public keys.

Claims by name are those of the policy that FLARE ships (gpu_authorizer.py:28-72), with values that the policy wants.
"""

import ast
import base64
import hashlib
import importlib.util
import json
import os
import sys
import threading
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cordon.attest.nvgpu import nras as cordon_nras
from cordon.errors import ConfigError

AUTHORIZER = "nvflare.app_opt.confidential_computing.gpu_authorizer"
NONCE = "ab" * 32


class Nras:
    """Signs GPU tokens as NVIDIA's service does: ES384, an overall token with the digest of each detached one."""

    kid = "test-nras"

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP384R1())

    def sign(self, **claims):
        now, issuer = datetime.now(UTC), "https://nras.attestation.nvidia.com"
        body = {"iss": issuer, "iat": now, "nbf": now, "exp": now + timedelta(hours=1), **claims}
        return jwt.encode(body, self.key, algorithm="ES384", headers={"kid": self.kid})

    def overall(self, nonce, detached):
        digests = {name: ["DIGEST", ["SHA-256", _digest(token)]] for name, token in detached.items()}
        result = {"x-nvidia-overall-att-result": True, "x-nvidia-ver": "3.0"}
        return self.sign(eat_nonce=nonce, submods=digests, **result)

    def gpu(self, nonce, **claims):
        """Detached token of one good GPU, with ``claims`` changed."""
        good = {"ueid": "1", "secboot": True, "dbgstat": "disabled", **_rules()["detached-claims"]}
        return self.sign(eat_nonce=nonce, **{**good, **claims})

    def token(self, nonce=NONCE, **claims):
        """What a node with one GPU sends."""
        detached = {"GPU-0": self.gpu(nonce, **claims)}
        return bundle(self.overall(nonce, detached), detached)

    def jwks(self):
        now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test NRAS")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .sign(self.key, hashes.SHA384())
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        return {"keys": [{"kid": self.kid, "x5c": [base64.b64encode(der).decode()]}]}

    def pinned(self):
        """The service's keys as a file, for Cordon."""
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**public, "kid": self.kid, "alg": "ES384"}]}).encode()


def bundle(overall, detached):
    """The token as it travels: a list whose first part nobody checks, and the service's tokens."""
    return json.dumps([["JWT", "unchecked"], {"REMOTE_GPU_CLAIMS": [["JWT", overall], detached]}])


def _digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def _rules(policy=None):
    return json.loads(policy or shipped_policy())["authorization-rules"]


def shipped_policy():
    """FLARE's default policy, read out of the source: without the SDK the module cannot be imported."""
    source = Path(importlib.util.find_spec(AUTHORIZER).origin).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "default_policy":
            return ast.literal_eval(node.value)
    raise AssertionError("gpu_authorizer.py has no default_policy")


def _fits(claims, rules):
    return all(
        _fits(claims.get(key, {}), rule) if isinstance(rule, dict) else claims.get(key) == rule
        for key, rule in rules.items()
    )


class StrictAttestation:
    """The SDK's ``Attestation`` as GPUAuthorizer calls it, with more checks than it makes.

    Checked are the signature and expiry of each token, the policy, that every token has the nonce that was set, and
    that the detached tokens are those whose digests the overall token holds (2.7.3 checks neither of the last two). As
    in 2.7.3, `set_token` puts a token down and `validate_token` takes the one that lies there; the calls that FLARE
    makes leave no other way.
    """

    nras = None
    tokens: dict = {}  # noqa: RUF012  # of the class, as in the SDK
    name = nonce = ""

    def set_name(self, name):
        self.name = name

    def set_claims_version(self, version):
        pass

    def add_verifier(self, device, environment, url, evidence):
        pass

    def set_nonce(self, nonce):
        self.nonce = nonce

    def get_evidence(self):
        return ["evidence of this node's GPU"]

    def attest(self, evidence):
        self.set_token(self.name, self.nras.token(self.nonce))

    def get_token(self):
        return self.tokens[self.name]

    def set_token(self, name, eat_token):
        self.tokens[name] = eat_token

    def validate_token(self, policy):
        rules = _rules(policy)
        (_, overall), detached = json.loads(self.tokens[self.name])[1]["REMOTE_GPU_CLAIMS"]
        claims, gpus = self._open(overall), {name: self._open(each) for name, each in detached.items()}
        held = {name: digest[1][1] for name, digest in claims["submods"].items()}
        return bool(
            gpus
            and held == {name: _digest(each) for name, each in detached.items()}
            and all(each["eat_nonce"] == self.nonce for each in (claims, *gpus.values()))
            and _fits(claims, rules["overall-claims"])
            and all(_fits(each, rules["detached-claims"]) for each in gpus.values())
        )

    def _open(self, token):
        return jwt.decode(token, self.nras.key.public_key(), algorithms=["ES384"])


def _strict(monkeypatch, nras):
    module = types.ModuleType("nv_attestation_sdk.attestation")
    module.Attestation = type("Attestation", (StrictAttestation,), {"nras": nras, "tokens": {}})
    module.Devices, module.Environment = types.SimpleNamespace(GPU=2), types.SimpleNamespace(REMOTE=5)
    package = types.ModuleType("nv_attestation_sdk")
    package.attestation = module
    monkeypatch.setitem(sys.modules, "nv_attestation_sdk", package)
    monkeypatch.setitem(sys.modules, "nv_attestation_sdk.attestation", module)


def _real(monkeypatch, nras):
    folder = os.environ.get("CORDON_NVIDIA_SDK")
    if not folder:
        pytest.skip("set CORDON_NVIDIA_SDK to a folder with nv-attestation-sdk 2.7.3 (see the module's docstring)")
    for name in [each for each in sys.modules if each.split(".")[0] == "nv_attestation_sdk"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)
    for local in ("verifier", "verifier.cc_admin"):  # reads GPUs of this machine; not part of the verification
        monkeypatch.setitem(sys.modules, local, types.ModuleType(local))
    sys.modules["verifier"].cc_admin = sys.modules["verifier.cc_admin"]
    monkeypatch.setitem(sys.modules, "nv_attestation_sdk.verifiers", types.ModuleType("nv_attestation_sdk.verifiers"))
    for side in ("gpu.attest_gpu_remote", "gpu.attest_gpu_local", "nvswitch.attest_nvswitch_remote",
                 "nvswitch.attest_nvswitch_local"):  # fmt: skip
        name = f"nv_attestation_sdk.{side}"
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for call in ("get_evidence", "attest"):
            setattr(sys.modules[name], call, None)
    sdk = importlib.import_module("nv_attestation_sdk.attestation")
    nras_utils = importlib.import_module("nv_attestation_sdk.utils.nras_utils")
    answer = types.SimpleNamespace(json=nras.jwks)
    monkeypatch.setattr(nras_utils, "requests", types.SimpleNamespace(get=lambda url, timeout: answer))
    client = sdk.Attestation
    client.reset()
    monkeypatch.setattr(client, "get_evidence", classmethod(lambda cls: ["evidence of this node's GPU"]))
    attest = classmethod(lambda cls, _: cls.set_token(cls.get_name(), nras.token(cls.get_nonce())))  # as its own ends
    monkeypatch.setattr(client, "attest", attest)


SDKS = {"strict": _strict, "sdk": _real}
both = pytest.mark.parametrize("start", SDKS, indirect=True)
real = pytest.mark.parametrize("start", ["sdk"], indirect=True)


@pytest.fixture
def nras():
    return Nras()


@pytest.fixture
def start(request, nras, monkeypatch, tmp_path):
    """Starts a verifier: a new GPUAuthorizer, as after a restart."""
    monkeypatch.chdir(tmp_path)  # the SDK writes its log into the current folder
    SDKS[request.param](monkeypatch, nras)
    monkeypatch.delitem(sys.modules, AUTHORIZER, raising=False)
    module = importlib.import_module(AUTHORIZER)
    yield module.GPUAuthorizer
    sys.modules.pop(AUTHORIZER, None)
    for name in [each for each in sys.modules if each.split(".")[0] == "nv_attestation_sdk"]:
        del sys.modules[name]


def forged(nonce=NONCE):
    """A token with everything in it, signed by nobody whom anybody knows."""
    return Nras().token(nonce)


@both
def test_control_stock_gpu_takes_good_tokens_and_no_bad_ones(start, nras):
    assert start().verify(nras.token()) is True
    for bad in (
        forged(),
        nras.token(**{"x-nvidia-gpu-attestation-report-signature-verified": False}),
        nras.token(measres="fail"),
        nras.token(exp=datetime.now(UTC) - timedelta(minutes=1)),
        "[[],{}]",
        "garbage",
    ):
        assert not start().verify(bad)


@both
def test_f4_stock_gpu_takes_a_token_again_after_a_restart(start, nras):
    """A recorded token, shown again after the verifier restarted.

    Lines 121-124: the nonce that the token must have is read from the token. What was seen is remembered in memory
    (line 83), so within the hour that a token is valid it passes once in each life of the process.
    """
    token, verifier = nras.token(), start()
    assert verifier.verify(token) is True
    assert verifier.verify(token) is False
    assert start().verify(token) is True


@both
def test_g0_stock_gpu_takes_the_provers_choice_of_nonce(start, nras):
    """A token made at any time, for any nonce, e.g. for a session with somebody else: no challenge is compared.

    Line 124 tells the SDK that the nonce to expect is the one that line 121 found in the token.
    """
    for nonce in ("00", "made last night", NONCE):
        assert start().verify(nras.token(nonce)) is True


@both
def test_g3_stock_gpu_takes_a_gpu_that_its_host_can_debug(start, nras):
    """NVIDIA's service says of a GPU: debugging enabled, secure boot off. It is true, signed, and passes.

    The policy that FLARE ships (lines 28-72) does not ask for the claims ``dbgstat`` and ``secboot``.
    """
    assert start().verify(nras.token(dbgstat="enabled", secboot=False)) is True
    assert not {"dbgstat", "secboot"} & set(_rules()["detached-claims"])


@both
def test_f6_stock_gpu_takes_a_forged_token_when_it_makes_its_own_meanwhile(start, nras):
    """A forged token is being verified; at that moment a third party asks this node for a token of its own.

    Verifying and making use one client and one slot: line 125 puts the forged token down, lines 96-100 (in the thread
    of another cell request) put this node's good one over it, and line 126 validates what lies there. Nothing locks.
    The interleaving is forced here, where the attacker has to repeat until it hits.
    """
    verifier = start()
    assert verifier.verify(forged("cd" * 32)) is False  # without the interleaving
    put_down = verifier.client.set_token

    def interleaved(name, eat_token):
        verifier.client.set_token = put_down
        put_down(name=name, eat_token=eat_token)
        other = threading.Thread(target=verifier.generate)
        other.start()
        other.join()

    verifier.client.set_token = interleaved
    try:
        assert verifier.verify(forged()) is True
    finally:
        del verifier.client.set_token


@real
def test_g1_stock_gpu_takes_a_token_about_no_gpu(start, nras):
    """The node shows a true overall token, and no detached claims at all: those on its GPU are left out.

    SDK nras_utils.py:82-93 loops over the detached claims that are there. FLARE looks at none (lines 108-118).
    """
    honest = nras.overall(NONCE, {"GPU-0": nras.gpu(NONCE)})
    assert start().verify(bundle(honest, {})) is True


@real
def test_g2_stock_gpu_takes_the_claims_of_another_gpu(start, nras):
    """Under a fresh overall token of a bad GPU lie the detached claims of a good one, from another session and nonce.

    The overall token holds the digest of each detached one (``submods``), and SDK 2.7.3 compares neither digests nor
    nonces (nras_utils.py:69-95).
    """
    bad = {"GPU-0": nras.gpu(NONCE, measres="fail", dbgstat="enabled")}
    good = {"GPU-0": nras.gpu("another session")}
    assert start().verify(bundle(nras.overall(NONCE, bad), bad)) is False  # control
    assert start().verify(bundle(nras.overall(NONCE, bad), good)) is True


# -- Cordon, given the same tokens -----------------------------------------------------------------------------------


def _judge(nras, token, nonce=NONCE):
    """Cordon's verdict on what the service returned, in ``token``, under this verifier's ``nonce``."""
    answer = json.loads(token)[1]["REMOTE_GPU_CLAIMS"]
    return cordon_nras.verify(
        json.dumps(answer).encode(), jwks=nras.pinned(), nonce=bytes.fromhex(nonce), now=datetime.now(UTC)
    )


def _failed(appraisal):
    return {code for code, result, _ in appraisal.codes if result == "fail"}


def test_control_cordon_gpu_finds_no_fault_with_a_good_token(nras):
    appraisal = _judge(nras, nras.token())
    assert appraisal.genuine
    assert _failed(appraisal) == set()


def test_f4_g0_cordon_gpu_wants_its_own_nonce(nras):
    """A token of before, or for somebody else: its nonce is not the one that this verifier asked with."""
    appraisal = _judge(nras, nras.token(), nonce="cd" * 32)
    assert appraisal.verdict == "fail"
    assert _failed(appraisal) == {"nonce"}


def test_f6_cordon_gpu_has_no_slot(nras):
    """The token is an argument and the verdict a value: nothing is put down in between. A forged one stays forged."""
    verdicts = []
    forgery, good = forged(), nras.token()
    threads = [
        threading.Thread(target=lambda token=token: verdicts.append((token, _judge(nras, token).genuine)))
        for token in [forgery, good] * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(verdicts) == 16
    assert all(genuine == (token == good) for token, genuine in verdicts)
    assert "token_signature" in _failed(_judge(nras, forgery))


def test_g1_cordon_gpu_wants_the_claims(nras):
    """No detached claims, and those of one GPU of two."""
    both_gpus = {name: nras.gpu(NONCE, ueid=name[-1]) for name in ("GPU-0", "GPU-1")}
    overall = nras.overall(NONCE, both_gpus)
    assert _failed(_judge(nras, bundle(overall, both_gpus))) == set()
    appraisal = _judge(nras, bundle(overall, {"GPU-0": both_gpus["GPU-0"]}))
    assert not appraisal.genuine
    assert "token_submods" in _failed(appraisal)
    try:
        assert "token_submods" in _failed(_judge(nras, bundle(overall, {})))
    except ConfigError as error:
        assert str(error).startswith("token_format: ")


def test_g2_cordon_gpu_compares_the_digests(nras):
    """Spliced from another session, and from this one: the overall token tells which claims are its own."""
    bad = {"GPU-0": nras.gpu(NONCE, measres="fail", dbgstat="enabled")}
    for good in (nras.gpu("ef" * 32), nras.gpu(NONCE)):
        appraisal = _judge(nras, bundle(nras.overall(NONCE, bad), {"GPU-0": good}))
        assert not appraisal.genuine
        assert "token_submods" in _failed(appraisal)


def test_g3_cordon_gpu_refuses_a_gpu_that_its_host_can_debug(nras):
    """With a policy or without."""
    appraisal = _judge(nras, nras.token(dbgstat="enabled", secboot=False))
    assert appraisal.genuine
    assert appraisal.verdict == "fail"
    assert _failed(appraisal) == {"debug", "secure_boot"}
