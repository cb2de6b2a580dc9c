"""The same attacks on the CC manager of nvflare 2.9.0, which lets them through, and on Cordon's, which does not.

Line numbers are those of nvflare 2.9.0's app_opt/confidential_computing/cc_manager.py unless another file is named. The
stock federation has authorizers without a flaw (``FlawlessAuthorizer``), so what passes here passes for the best ones.
"""

import json
import os

import pytest
import yaml
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.app_opt.confidential_computing.cc_manager import CC_INFO, CC_VERIFY_ERROR
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.defs import ClientType
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from cordon import signing
from cordon.attest.appraise import EVIDENCE_TYPE
from cordon.attest.nvgpu.policy import GpuPolicy
from cordon.attest.software import SoftwareAttester
from cordon.errors import AttestError
from fakes import federation_kits
from fakes.federation_kits import ROOT, mtls_key
from fakes.stock_flare import CPU, GPU, SERVER, CordonFederation, StockFederation

HONEST, ROGUE, THIRD = "hospital-a", "hospital-b", "hospital-c"
BAD = [{"_cc_token": "no device here", "_cc_namespace": CPU}]


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """The list of a hospital's commands is FLARE's global: each test has its own."""
    made = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", made)


@pytest.fixture(autouse=True)
def exits(monkeypatch):
    """Exit codes with which parents ended themselves, instead of this process."""
    made = []
    monkeypatch.setattr(os, "_exit", made.append)
    return made


@pytest.fixture
def stock(tmp_path):
    return StockFederation(tmp_path)


@pytest.fixture
def cordon(kits):
    return CordonFederation(kits, (SERVER, HONEST, ROGUE, THIRD))


def _resigned(envelope, name, **changes):
    """``envelope``'s statement changed, and signed again by ``name``, who holds its own mTLS key."""
    return signing.sign(mtls_key(name), EVIDENCE_TYPE, {**signing.unverified_body(envelope), **changes})


def _answer(envelope):
    return make_reply(ReturnCode.OK, body={"evidence": envelope})


# -- what the rest is measured against -------------------------------------------------------------------------------


def test_control_stock_takes_good_tokens_and_no_bad_ones(stock, tmp_path):
    """Without tricks the stock manager does its work: else nothing below would mean anything."""
    assert stock.server.register("site-1", {"site-1": stock.fresh_info("site-1")})
    stock.server.schedule({"site-1": (True, "r"), "site-2": (True, "r")})
    assert stock.server.manager.cross_validation_run_once
    assert not stock.server.down
    for info in ({"site-1": BAD}, {"site-1": []}, {}, None):
        other = StockFederation(tmp_path)
        other.server.register("site-1", info)
        assert other.server.down
    replayed = stock.fresh_info("site-2")
    stock.server.register("site-2", {"site-2": replayed})
    assert not stock.server.down
    stock.server.register("site-2", {"site-2": replayed})
    assert stock.server.down


def test_control_cordon_takes_good_evidence(cordon):
    assert cordon.admitted() == [HONEST, ROGUE, THIRD]


# -- A1, A6, admin: at the door --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SITE-1", "site-1 ", "site-9", ""])
def test_a1_stock_takes_a_site_that_files_its_tokens_under_another_name(tmp_path, name):
    """A plain server without confidential hardware registers as site-1, but calls itself "SITE-1" in its CC info.

    Lines 235-242 take the peer's own dictionary, whose keys are never compared with who registers; lines 288-290 pass
    every name that is not in ``cc_enabled_sites``. No token is needed. Nor is the best authorizer any help.
    """
    stock = StockFederation(tmp_path, without=["site-1"])
    assert stock.server.register("site-1", {name: []})
    assert not stock.server.down


@pytest.mark.parametrize("name", ["HOSPITAL-B", "hospital-b ", "hospital-9", ""])
def test_a1_cordon_goes_by_the_key_in_the_study_contract(cordon, name):
    """No name that a peer gives itself opens anything: a stranger's is refused, and a member's evidence is its own."""
    assert not cordon.server.register(name, {name: []})
    cordon.wire.tampered[ROGUE] = lambda _, honest: _answer(
        _resigned(
            honest.payload["evidence"],
            ROGUE,
            context={**signing.unverified_body(honest.payload["evidence"])["context"], "site": name},
        )
    )
    assert cordon.server.register(ROGUE, {name: []})  # the door: it is in the roster. It gets no job:
    assert cordon.admitted() == [HONEST, THIRD]
    assert {"context_site", "report_data"} <= cordon.failed(ROGUE)
    assert cordon.admitted(name) == []


@pytest.mark.parametrize("value", [7, ["token"], [7], [{"_cc_token": "t", "_cc_namespace": ["x"]}]])
def test_a6_stock_takes_a_site_whose_tokens_break_the_check(tmp_path, value):
    """A site without hardware sends CC info of a wrong type under its true name.

    Lines 294-297 raise TypeError or AttributeError, and nothing there catches more than CCTokenVerifyError. FLARE logs
    what a handler raises and refuses nobody unless it is NotAuthenticated (apis/utils/event.py:74-82,
    private/fed/server/fed_server.py:832-836). An authorizer that raises anything else has the same effect.
    """
    stock = StockFederation(tmp_path, without=["site-1"])
    assert stock.server.register("site-1", {"site-1": value})
    assert not stock.server.down


@pytest.mark.parametrize(
    "value", [7, ["token"], {"payload": 7}, {"payload": "e30=", "payloadType": [], "signatures": 7}]
)
def test_a6_cordon_judges_whatever_comes(cordon, value):
    """An answer of a wrong type is a verdict against its sender, and costs nobody else anything."""
    cordon.wire.tampered[ROGUE] = lambda _request, _honest: _answer(value)
    assert cordon.admitted() == [HONEST, THIRD]
    assert cordon.failed(ROGUE) & {"evidence_format", "mtls_signature"}


def test_admin_stock_takes_whoever_says_it_is_an_admin(tmp_path):
    """A site registers with the client type "admin" in its own headers. Lines 151-154 skip all checks then."""
    stock = StockFederation(tmp_path, without=["site-1"])
    assert stock.server.register("site-1", None, kind=ClientType.ADMIN)
    assert not stock.server.down


def test_admin_cordon_gives_an_admin_no_job(cordon):
    """An admin's console is no site: it is let in, holds no lease, and so gets no job under any name."""
    cordon.wire.tampered[ROGUE] = lambda _request, _honest: make_reply(ReturnCode.TIMEOUT)
    for name in (ROGUE, "hospital-9"):
        assert cordon.server.register(name, None, kind=ClientType.ADMIN)
        assert cordon.admitted(name) == []
    assert cordon.admitted() == [HONEST, THIRD]


# -- A2, A3: whose evidence, and how much of it ----------------------------------------------------------------------


def test_a2_stock_takes_a_site_that_leaves_its_gpu_out(stock):
    """A site whose GPU is not in confidential mode sends its CPU token and no GPU token.

    Lines 294-305 verify the tokens that came; that each namespace of ``cc_verifiers`` came is asked nowhere.
    """
    info = [each for each in stock.fresh_info("site-1") if each["_cc_namespace"] != GPU]
    assert len(info) == 1
    assert stock.server.register("site-1", {"site-1": info})
    assert not stock.server.down


@pytest.fixture
def cordon_wants_gpus(tmp_path, monkeypatch):
    """As ``cordon``, with an attestation policy that wants GPU evidence, whatever is in it."""
    policy = yaml.safe_load((ROOT / "cc_config" / "policy" / "software.yml").read_text())
    policy["gpu"] = dict.fromkeys(GpuPolicy.__struct_fields__, "any")
    root = tmp_path / "root"
    (root / "cc_config" / "policy").mkdir(parents=True)
    (root / "cc_config" / "policy" / "software.yml").write_text(yaml.safe_dump(policy))
    (root / "provisioning").symlink_to(ROOT / "provisioning")
    monkeypatch.setattr(federation_kits, "ROOT", root)
    names = (HONEST, ROGUE, THIRD)
    return CordonFederation(federation_kits.make_kits(tmp_path / "gpu-kits", names), (SERVER, *names))


def test_a2_cordon_wants_all_that_its_policy_wants(cordon_wants_gpus):
    """No GPU evidence, an empty list of it, and one of junk: none is a pass, and the reason says which part."""
    assert cordon_wants_gpus.admitted() == []
    assert cordon_wants_gpus.failed(ROGUE) == {"gpu"}
    for gpus in ([], [{}], [{"uuid": "GPU-0"}]):
        cordon_wants_gpus.boot([SERVER])
        cordon_wants_gpus.wire.tampered[ROGUE] = lambda _, honest, gpus=gpus: _answer(
            _resigned(honest.payload["evidence"], ROGUE, gpu_evidence=gpus)
        )
        assert cordon_wants_gpus.admitted() == []
        assert any(code.startswith("gpu") for code in cordon_wants_gpus.failed(ROGUE))


def test_a2_cordon_refuses_the_gpu_of_another_machine(cordon_wants_gpus, vectors, monkeypatch):
    """A machine without a GPU in confidential mode shows the genuine evidence of another's, and its CPU vouches for it.

    (Stock: G0 in test_stock_gpu_authorizer.py; nothing there ties a GPU token to a CPU token or to a challenge.)
    """
    folder = vectors / "attestation" / "nvgpu" / "attestation-sdk-evidence"
    (other,) = json.loads((folder / "hopper_evidence.json").read_text())
    device = {"uuid": "GPU-0", "arch": "HOPPER", "report": other["evidence"], "chain": other["certificate"]}
    monkeypatch.setattr(SoftwareAttester, "gpu_evidence", lambda self, nonce: [device])
    assert cordon_wants_gpus.admitted() == []
    assert cordon_wants_gpus.failed(ROGUE) == {"gpu_nonce"}


def test_a3_stock_takes_the_token_of_another_machine(tmp_path):
    """Site-1 is a plain server. It asks site-2 for a fresh token, which site-2 gives anybody, and shows it as its own.

    ``verify(token)`` (line 299) is not told whose token it should be, and lines 611-635 make a token for any requester.
    So no token names a site or a TLS key, and a rented cloud VM serves as well as site-2.
    """
    stock = StockFederation(tmp_path, without=["site-1"])
    assert stock.server.register("site-1", {"site-1": stock.fresh_info("site-2")})
    assert not stock.server.down


def test_a3_cordon_refuses_the_evidence_of_another_site(cordon):
    """Relayed as it is, relayed under the rogue's own signature, and made by a lent TEE for the rogue's statement."""
    lent = CordonFederation(cordon.kits, cordon.names)

    def honest_ones(request):
        return lent.wire.ask(HONEST, "cordon_attest", "challenge", request)

    cordon.wire.tampered[ROGUE] = lambda request, _: honest_ones(request)
    assert cordon.admitted() == [HONEST, THIRD]
    assert cordon.failed(ROGUE) == {"mtls_signature"}


def test_a3_cordon_refuses_it_under_the_rogues_signature_too(cordon):
    """The rogue signs the statement that another site made, with its own name put in."""
    lent = CordonFederation(cordon.kits, cordon.names)

    def resign(request, honest):
        body = signing.unverified_body(lent.wire.ask(HONEST, "cordon_attest", "challenge", request).payload["evidence"])
        return _answer(_resigned(honest.payload["evidence"], ROGUE, report=body["report"]))

    cordon.wire.tampered[ROGUE] = resign
    assert cordon.admitted() == [HONEST, THIRD]
    assert {"report_data", "tee_holder"} <= cordon.failed(ROGUE)


# -- A5, F4: later ---------------------------------------------------------------------------------------------------


def test_a5_stock_loses_a_site_that_answers_under_another_name(tmp_path):
    """In the check before a job, a site without hardware answers with a bad token under a name that is not enabled.

    Lines 529-532 file the answer under the name in it and not under the site that was asked; whether every site that
    was asked has an entry is checked nowhere; lines 288-290 then pass the entry unread.
    """
    stock = StockFederation(tmp_path, without=["site-1"])
    stock.wire.tampered["site-1"] = lambda _request, _honest: make_reply(
        ReturnCode.OK, body={"site_name": "not-enabled", "cc_info": BAD}
    )
    stock.server.schedule({"site-1": (True, "r"), "site-2": (True, "r")})
    assert stock.server.manager.cross_validation_run_once
    assert not stock.server.down


def test_a5_cordon_files_an_answer_under_who_was_asked(cordon):
    """The same answer, with another's good evidence in it: the one who was asked is out, and no one is in by it."""
    lent = CordonFederation(cordon.kits, cordon.names)

    def answer(request, _):
        other = lent.wire.ask(HONEST, "cordon_attest", "challenge", request).payload["evidence"]
        return make_reply(ReturnCode.OK, body={"site_name": HONEST, "peer": HONEST, "evidence": other})

    cordon.wire.tampered[ROGUE] = answer
    cordon.wire.connected.remove(HONEST)
    assert cordon.admitted(HONEST, ROGUE, THIRD) == [THIRD]
    assert cordon.failed(ROGUE) == {"mtls_signature"}


def test_f4_stock_takes_a_token_again_after_a_restart(stock, tmp_path):
    """A token that was taken once is shown again after the server restarted.

    A token answers no challenge: a request says who asks and no more (line 511). So all that could stop a replay is
    what an authorizer remembers by itself; FLARE's do in memory (SNP, GPU) or not at all (TDX, Azure).
    ``token_expiration`` (line 195) is kept and never looked at (line 590).
    """
    old = stock.fresh_info("site-1")
    stock.server.register("site-1", {"site-1": old})
    assert not stock.server.down
    again = StockFederation(tmp_path, without=["site-1"])
    assert again.server.register("site-1", {"site-1": old})
    assert not again.server.down


def test_f4_cordon_refuses_an_old_answer_after_a_restart(cordon):
    """The challenge is the verifier's: evidence for an earlier one answers another, restarted or not."""
    kept = []

    def replay(_, honest):
        kept.append(honest)
        return kept[0]

    cordon.wire.tampered[ROGUE] = replay
    assert cordon.admitted() == [HONEST, ROGUE, THIRD]
    cordon.boot([SERVER])
    assert cordon.admitted() == [HONEST, THIRD]
    assert cordon.failed(ROGUE) == {"nonce"}
    # nor does the new nonce, written over the old one
    cordon.wire.tampered[ROGUE] = lambda _, honest: _answer(
        _resigned(
            kept[0].payload["evidence"], ROGUE, nonce=signing.unverified_body(honest.payload["evidence"])["nonce"]
        )
    )
    cordon.boot([SERVER])
    assert cordon.admitted() == [HONEST, THIRD]
    assert "report_data" in cordon.failed(ROGUE)


# -- the kill switch -------------------------------------------------------------------------------------------------


def test_kill_switch_stock_ends_everybody_for_one_bad_token(tmp_path):
    """One site, or a stranger with a member's name, registers with a bad token: all jobs, all sites and the server end.

    Lines 252-257 call ``_shutdown_system``, lines 668-678: ``stop_run`` for each running job, then ``shutdown all``.
    """
    stock = StockFederation(tmp_path, without=["site-1"])
    stock.server.engine.run_processes = {"job-of-all": {}}
    stock.server.register("site-1", {"site-1": BAD})
    assert [call.args[0] for call in stock.server.engine.job_runner.stop_run.call_args_list] == ["job-of-all"]
    sent = stock.server.engine.server.admin_server.send_requests.call_args.args[0]
    assert set(sent) == {"token-site-1", "token-site-2"}
    assert stock.server.down


def test_kill_switch_stock_ends_everybody_for_one_silent_site(stock):
    """One site does not answer in time in a periodic check. Lines 552-553 raise for it, lines 336-338 end everybody."""
    del stock.wire.handlers["site-1", "cc_validation", "request_fresh_token"]
    stock.server.schedule({"site-1": (True, "r"), "site-2": (True, "r")})
    assert stock.server.down


def test_kill_switch_stock_ends_everybody_on_a_sites_word(stock):
    """A site answers the scheduler's question for resources with "no", and a reason that it words itself.

    Lines 168-175 end the whole federation for a reason that begins with ``_cc_verify_error``. No site of nvflare 2.9.0
    sends it, so who does is an attacker.
    """
    stock.server.schedule({"site-1": (False, CC_VERIFY_ERROR), "site-2": (True, "r")})
    assert stock.server.down


@pytest.mark.parametrize("how", ["bad", "silent", "word"])
def test_kill_switch_cordon_leaves_one_site_out(cordon, how):
    """Bad evidence, silence, or words: the one site is out, the others get their jobs, and no one is told to end."""
    answers = {name: (True, "r") for name in (HONEST, ROGUE, THIRD)}
    if how == "word":
        answers[ROGUE] = (False, CC_VERIFY_ERROR)
    else:
        reply = _answer("none") if how == "bad" else make_reply(ReturnCode.TIMEOUT)
        cordon.wire.tampered[ROGUE] = lambda _request, _honest: reply
    result = cordon.server.schedule(answers)
    assert [name for name, (enough, _) in result.items() if enough] == [HONEST, THIRD]
    assert not cordon.server.down
    assert not cordon.server.engine.job_runner.stop_run.called


def test_kill_switch_cordon_takes_a_site_back(cordon):
    """After a restart of the rogue's machine in good order, it is asked again and may take part."""
    cordon.wire.tampered[ROGUE] = lambda _request, _honest: _answer("none")
    assert cordon.admitted() == [HONEST, THIRD]
    del cordon.wire.tampered[ROGUE]
    cordon.boot([SERVER])  # instead of waiting until the site is asked again
    assert cordon.admitted() == [HONEST, ROGUE, THIRD]


# -- S1, S2: the coordinator shows nothing ---------------------------------------------------------------------------


def _join(client, reply):
    """A site registers as FLARE's client does, with ``reply`` as the server's CC info."""
    context = client.context()
    client.fire(EventType.BEFORE_CLIENT_REGISTER, context)
    shared = json.loads(json.dumps(context.get_prop(CC_INFO)))  # communicator.py:347-350: sent, and read back unless
    context.set_prop(
        CC_INFO, reply or shared, private=False, sticky=False
    )  # authenticator.py:289-291 found the server's
    client.fire(EventType.AFTER_CLIENT_REGISTER, context)
    return context.get_prop(FLContextKey.EXCEPTIONS)


def test_s1_stock_site_checks_itself_when_the_server_shows_nothing(tmp_path, exits):
    """The coordinator runs on a plain server and leaves its tokens out of the reply to a registration.

    The site has put its *own* tokens under the same key of the same context (line 213; client_train.py:165-168), and
    private/fed/authenticator.py:289-291 and client/communicator.py:347-350 replace them only if the server sent any.
    So line 218 finds tokens, and the site verifies its own.
    """
    stock = StockFederation(tmp_path, without=[SERVER])
    assert not _join(stock.parents["site-1"], reply=None)
    assert exits == []
    _join(stock.parents["site-1"], reply={SERVER: BAD})  # had the coordinator been honest about it
    assert exits == [1]


def test_s2_stock_site_asks_the_server_whom_to_check(tmp_path, exits):
    """In a site's own periodic check, the coordinator names all peers but itself, and is not checked.

    Lines 377-386 and 387-421: whom a site checks is what the server says. (Fired by the event here, by a thread in a
    site: lines 462-467; both call the same check.)
    """
    stock = StockFederation(tmp_path, without=[SERVER])
    site = stock.parents["site-1"]
    stock.wire.tampered[SERVER] = lambda request, _: make_reply(ReturnCode.OK, body={"sites": [("site-2", "site-2")]})
    site.fire(EventType.BEFORE_CHECK_CLIENT_RESOURCES)
    assert site.manager.cross_validation_run_once
    assert exits == []


@pytest.mark.parametrize("how", ["nothing", "an error", "another's", "its own name only"])
def test_s1_cordon_site_wants_the_coordinators_own_evidence(cordon, how):
    """A hospital knows its coordinator from the study contract, asks it itself, and does nothing for it without."""
    lent = CordonFederation(cordon.kits, cordon.names)
    replies = {
        "nothing": lambda _request, _honest: make_reply(ReturnCode.OK, body={"evidence": None}),
        "an error": lambda _request, _honest: make_reply(ReturnCode.PROCESS_EXCEPTION),
        "another's": lambda request, _: lent.wire.ask(THIRD, "cordon_attest", "challenge", request),
        "its own name only": lambda _request, _honest: make_reply(ReturnCode.OK, body={"sites": []}),
    }
    hospital = cordon.parents[HONEST].manager
    cordon.wire.tampered[SERVER] = replies[how]
    with pytest.raises(AttestError, match="coordinator_not_attested"):
        hospital.require_coordinator()


def test_s1_control_cordon_site_takes_an_honest_coordinator(cordon):
    cordon.parents[HONEST].manager.require_coordinator()


# -- F6: one slot for what is made and what is judged ----------------------------------------------------------------


def test_f6_cordon_makes_evidence_while_it_judges_another(cordon):
    """The coordinator is made to answer a challenge while a forged answer is on the way to it: the verdict stays.

    (Stock: test_stock_gpu_authorizer.py.)
    """

    def forged(request, honest):
        mine = cordon.wire.ask(SERVER, "cordon_attest", "challenge", request)
        assert mine.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK
        return _answer({**honest.payload["evidence"], "signatures": []})

    cordon.wire.tampered[ROGUE] = forged
    assert cordon.admitted() == [HONEST, THIRD]
    assert cordon.failed(ROGUE) == {"evidence_format"}


# -- T1: a type of evidence that nobody checks -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tdx", "snp", "sgx", "az-snp", "x-tdx", "mock"])
def test_t1_cordon_takes_no_type_that_its_policy_does_not_name(cordon, kind):
    """Garbage that calls itself evidence of another kind: the policy says what counts, never the message.

    (Stock: test_stock_authorizers.py. What a quote must hold under a policy for TDX: the tests of ``attest.tdx``.)
    """
    cordon.wire.tampered[ROGUE] = lambda _, honest: _answer(
        _resigned(honest.payload["evidence"], ROGUE, type=kind, report="Z2FyYmFnZQ==")
    )
    assert cordon.admitted() == [HONEST, THIRD]
    assert "evidence_type" in cordon.failed(ROGUE)
