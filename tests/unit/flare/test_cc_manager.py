"""The CC manager on both sides, with the cell between them replaced by a function call."""

import base64
import copy
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import yaml
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.private.defs import ClientRegSession, ClientType, InternalFLContextKey, new_cell_message
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from cordon import signing
from cordon.attest import fault, software, standing
from cordon.attest import verifier as attest_verifier
from cordon.attest.appraise import make_evidence
from cordon.attest.binding import Context
from cordon.attest.keys import ProcessKeys
from cordon.errors import AttestError, ConfigError
from cordon.flare import gates
from cordon.flare.audit import AUDIT_FILE
from cordon.flare.cc_manager import CHANNEL, EXIT_BAD_KIT, FAULT_FOLDER, CordonCCManager
from cordon.flare.kit import STANDING_FILE, load_kit

HOSPITALS = ("hospital-a", "hospital-b")


@pytest.fixture(scope="module")
def kits(repo_root, tmp_path_factory):
    project = yaml.safe_load((repo_root / "provisioning" / "project.poc.yml").read_text())
    project["participants"] = [each for each in project["participants"] if each["name"] in ("server", *HOSPITALS)]
    for each in project["participants"]:
        each["cc_config"] = str(repo_root / "cc_config" / "software.yml")
    project["builders"][3]["args"]["base"] = str(repo_root / "provisioning")
    workspace = tmp_path_factory.mktemp("ws")
    provisioner = Provisioner(str(workspace), prepare_builders(project))
    return Path(provisioner.provision(prepare_project(copy.deepcopy(project)), mode="poc").get_result_location())


class Client:
    def __init__(self, name, token=""):
        self.name, self.token = name, token

    def get_fqcn(self):
        return self.name


class Network:
    """Cells of all participants: a request is answered by the target's own callback."""

    def __init__(self):
        self.callbacks, self.connected, self.asked = {}, [], []
        self.tamper, self.tokens = {}, {}
        self.cells = {}

    def engine(self, name):
        network = self

        class Cell:
            def __init__(self):
                self.core_cell = self
                self.filters = []

            def get_fqcn(self):
                return name

            def add_incoming_filter(self, channel, topic, cb):
                self.filters.append((channel, topic, cb))

            def register_request_cb(self, channel, topic, cb):
                assert channel == CHANNEL
                network.callbacks[name] = cb

            def broadcast_multi_requests(self, messages, timeout, optional):
                replies = {}
                for peer, message in messages.items():  # FLARE sends to the key, not to the message's target
                    network.asked.append(peer)
                    if peer in network.callbacks:
                        message.message.set_header(MessageHeaderKey.ORIGIN, name)
                        reply = network.callbacks[peer](message.message)
                        replies[peer] = network.tamper.get(peer, lambda reply: reply)(reply)
                    else:
                        replies[peer] = make_reply(ReturnCode.TIMEOUT)
                return replies

        cell = network.cells[name] = Cell()

        class Engine:
            def get_cell(self):
                return cell

            def get_clients(self):
                return [Client(name, network.tokens.get(name, "")) for name in network.connected]

        return Engine()


class Root:
    def __init__(self, path):
        self.path = path

    def get_root_dir(self):
        return str(self.path)


def _context(**props):
    context = FLContext()
    for key, value in props.items():
        context.set_prop(key, value, private=True, sticky=False)
    return context


def _boot(network, kit, name):
    manager = CordonCCManager()
    context = _context(**{FLContextKey.WORKSPACE_OBJECT: Root(kit)})
    engine = network.engine(name)
    context.get_engine = lambda: engine
    manager.handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    network.callbacks[name] = manager._answer
    return manager


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """The list of a hospital's commands is FLARE's global: each test has its own."""
    made = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", made)
    return made


@pytest.fixture
def federation(kits, tmp_path):
    """(network, managers by name, folder of kits); no watch thread: a test makes the rounds."""
    folder = shutil.copytree(kits, tmp_path / "kits")
    network = Network()
    managers = {name: _boot(network, folder / name, name) for name in ("server", *HOSPITALS)}
    network.connected = list(HOSPITALS)
    return network, managers, folder


def _resources(manager, sites):
    result = {site: (True, f"token-{site}") for site in sites}
    manager.handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, _context())
    manager.handle_event(
        EventType.AFTER_CHECK_CLIENT_RESOURCES, _context(**{FLContextKey.RESOURCE_CHECK_RESULT: result})
    )
    return result


def _audit(folder, name):
    return [json.loads(line) for line in (folder / name / AUDIT_FILE).read_text().splitlines()]


def test_whoever_cannot_be_looked_up_is_out(federation, monkeypatch):
    """FLARE only logs a handler's exception and schedules by what the result says then."""
    _, managers, _ = federation
    result = {site: (True, f"token-{site}") for site in HOSPITALS}
    monkeypatch.setattr(managers["server"], "attested", lambda site: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        managers["server"].handle_event(
            EventType.AFTER_CHECK_CLIENT_RESOURCES, _context(**{FLContextKey.RESOURCE_CHECK_RESULT: result})
        )
    assert all(not enough for enough, _ in result.values())


def test_attested_sites_take_part(federation):
    _, managers, folder = federation
    assert _resources(managers["server"], HOSPITALS) == {site: (True, f"token-{site}") for site in HOSPITALS}
    lines = _audit(folder, "server")
    assert [(line["peer"], line["verdict"], line["type"]) for line in lines] == [
        (name, "pass", "software") for name in HOSPITALS
    ]
    fields = {
        "time",
        "peer",
        "job",
        "verdict",
        "type",
        "state",
        "lease_until",
        "policy_digest",
        "evidence_sha256",
        "codes",
    }
    assert set(lines[0]) == fields


def test_one_bad_site_is_left_out_and_the_others_go_on(federation):
    network, managers, folder = federation
    other = managers["hospital-a"]._answer
    network.callbacks["hospital-b"] = other  # relays another site's evidence
    result = _resources(managers["server"], HOSPITALS)
    assert result["hospital-a"] == (True, "token-hospital-a")
    assert result["hospital-b"][0] is False
    assert "hospital-b is not attested" in result["hospital-b"][1]
    failed = [line for line in _audit(folder, "server") if line["verdict"] == "fail"]
    assert [line["peer"] for line in failed] == ["hospital-b"]
    assert failed[0]["codes"][0][:2] == ["mtls_signature", "fail"]


def test_a_bad_answer_ends_a_lease_and_is_not_asked_for_again_at_once(federation, monkeypatch):
    network, managers, _ = federation
    server = managers["server"]
    _resources(server, HOSPITALS)
    network.tamper["hospital-b"] = lambda reply: make_reply(ReturnCode.OK, body={"evidence": "none"})
    monkeypatch.setattr(server._verifier, "due", lambda peer, now: True)
    server._challenge_due()
    assert server.attested("hospital-a")
    assert not server.attested("hospital-b")
    monkeypatch.undo()
    network.asked.clear()
    _resources(server, HOSPITALS)
    assert network.asked == []


def test_an_error_while_one_peer_is_judged_costs_only_that_peer(federation, monkeypatch):
    _, managers, folder = federation
    server = managers["server"]
    server._challenge_due()
    assert all(server.attested(name) for name in HOSPITALS)
    genuine = attest_verifier.appraise

    def breaks(envelope, **arguments):
        if arguments["context"].site == "hospital-a":
            raise ZeroDivisionError("of the judge's own making")
        return genuine(envelope, **arguments)

    monkeypatch.setattr(attest_verifier, "appraise", breaks)
    monkeypatch.setattr(server._verifier, "due", lambda peer, now: True)
    server._challenge_due()  # hospital-a is judged first
    assert not server.attested("hospital-a")
    assert server.attested("hospital-b")
    last = {line["peer"]: line for line in _audit(folder, "server")}
    assert last["hospital-a"]["verdict"] == "fail"
    assert last["hospital-a"]["codes"] == [
        ["internal_error", "fail", "ZeroDivisionError while its evidence was judged"]
    ]
    assert last["hospital-b"]["verdict"] == "pass"
    monkeypatch.undo()
    assert not server._verifier.due("hospital-a", datetime.now(UTC))  # and it is not asked again at once


def test_the_gates_are_up_before_anybody_can_ask(federation, commands):
    network, _, _ = federation
    for name in ("server", *HOSPITALS):
        assert [(channel, topic) for channel, topic, _ in network.cells[name].filters] == [("*", "*")]
    assert {topic for each in commands for topic in each.get_topics()} == gates.SITE_COMMANDS


def test_the_coordinator_keeps_the_commands_of_its_own_process(kits, tmp_path, commands):
    before = list(commands)
    _boot(Network(), shutil.copytree(kits / "server", tmp_path / "server"), "server")
    assert commands == before


def test_silence_ends_no_lease_and_gives_none(federation, monkeypatch):
    network, managers, folder = federation
    server = managers["server"]
    server._challenge_due()
    del network.callbacks["hospital-a"]
    monkeypatch.setattr(server._verifier, "due", lambda peer, now: True)
    server._challenge_due()
    server._challenge_due()
    assert server.attested("hospital-a")
    silent = [line for line in _audit(folder, "server") if line["verdict"] == "not_checked"]
    assert [line["codes"][0][0] for line in silent] == ["no_answer"]  # said once


def test_whoever_is_not_in_the_roster_gets_no_job(federation):
    network, managers, _ = federation
    network.connected = ["hospital-a", "HOSPITAL-B", "admin", "site-9"]
    result = _resources(managers["server"], network.connected)
    assert [site for site, (ok, _) in result.items() if ok] == ["hospital-a"]
    assert network.asked == ["hospital-a"]


def _register(manager, name, kind=ClientType.REGULAR):
    context = _context(
        **{FLContextKey.CLIENT_TYPE: kind, InternalFLContextKey.CLIENT_REG_SESSION: ClientRegSession(name)}
    )
    manager.handle_event(EventType.CLIENT_REGISTER_RECEIVED, context)


def test_registration(federation):
    _, managers, _ = federation
    server = managers["server"]
    _register(server, "hospital-a")
    for stranger in ("hospital-c", "Hospital-A", "server", ""):
        with pytest.raises(NotAuthenticated):
            _register(server, stranger)
    with pytest.raises(NotAuthenticated):
        server.handle_event(EventType.CLIENT_REGISTER_RECEIVED, _context())


def test_a_site_that_says_it_is_an_admin_gets_in_and_gets_no_job(federation):
    network, managers, _ = federation
    _register(managers["server"], "hospital-z", ClientType.ADMIN)
    network.connected = ["hospital-a", "hospital-z"]
    assert _resources(managers["server"], ["hospital-z"])["hospital-z"][0] is False


@pytest.mark.parametrize(
    ("meta", "blocked"), [({"byoc": True}, True), ({"byoc": False}, False), ({}, False), (None, False)]
)
def test_code_in_a_job_is_refused(federation, meta, blocked):
    _, managers, _ = federation
    context = _context(**{FLContextKey.JOB_META: meta})
    managers["server"].handle_event(EventType.SUBMIT_JOB, context)
    assert bool(context.get_prop(FLContextKey.JOB_BLOCK_REASON)) is blocked


def test_a_hospital_wants_the_coordinator_attested(federation):
    network, managers, folder = federation
    hospital = managers["hospital-a"]
    network.callbacks["server"] = managers["hospital-b"]._answer  # somebody else in the coordinator's place
    with pytest.raises(AttestError, match="coordinator_not_attested"):
        hospital.require_coordinator()
    assert _audit(folder, "hospital-a")[0]["verdict"] == "fail"
    other = managers["hospital-b"]
    network.callbacks["server"] = managers["server"]._answer
    other.require_coordinator()
    assert other.attested("server")


def test_before_the_kit_is_loaded_nothing_passes():
    with pytest.raises(AttestError, match="not_started"):
        CordonCCManager().require_coordinator()


@pytest.mark.parametrize(
    "payload",
    [None, {}, {"nonce": b"short", "policy_digest": "p"}, {"nonce": b"n" * 32, "policy_digest": "p" * 999}, [1]],
)
def test_a_malformed_challenge_gets_no_evidence(federation, payload):
    _, managers, _ = federation
    reply = managers["hospital-a"]._answer(new_cell_message({}, payload))
    assert reply.get_header("return_code") != ReturnCode.OK


def test_a_process_with_a_bad_kit_ends(kits, tmp_path, monkeypatch, capsys):
    kit = shutil.copytree(kits / "hospital-a", tmp_path / "hospital-a")
    path = kit / "local" / "cordon.yml"
    path.write_text(path.read_text().replace("epsilon: 4.0", "epsilon: 40.0"))
    ended = []

    def leave(code):
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        _boot(Network(), kit, "hospital-a")
    assert ended == [EXIT_BAD_KIT]
    said = capsys.readouterr().err
    assert "this kit does not start" in said
    assert "cordon.yml: changed after it was signed" in said


def test_the_watch_starts_and_ends(federation):
    _, managers, _ = federation
    server = managers["server"]
    server.check_interval_s = 0.01
    server.handle_event(EventType.SYSTEM_START, _context())
    assert server._thread.is_alive()
    server.handle_event(EventType.SYSTEM_END, _context())
    assert not server._thread.is_alive()
    assert all(server.attested(name) for name in HOSPITALS)


def test_a_site_that_registers_anew_must_show_evidence_anew(federation):
    """Else a clone of its kit, started outside the confidential VM, would inherit the lease."""
    network, managers, folder = federation
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == list(HOSPITALS)
    network.tamper["hospital-b"] = lambda reply: make_reply(ReturnCode.OK, body={"evidence": "none"})
    network.tokens["hospital-b"] = "another"
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == ["hospital-a"]
    standing = load_kit(folder / "server", datetime.now(UTC)).standing("hospital-b")
    assert (standing.state, standing.reasons) == ("unattested", ("evidence_format",))


def test_a_hospital_that_registers_anew_asks_the_coordinator_anew(federation):
    _, managers, _ = federation
    managers["hospital-a"].require_coordinator()
    managers["hospital-a"].handle_event(EventType.AFTER_CLIENT_REGISTER, _context())
    assert not managers["hospital-a"].attested("server")
    managers["hospital-a"].require_coordinator()


def test_who_keeps_asking_for_evidence_gets_none_and_keeps_nobody_else_from_it(federation):
    """A report costs the hardware seconds: one member must not be able to use them all up."""
    network, _, _ = federation

    def ask(origin):
        request = new_cell_message({MessageHeaderKey.ORIGIN: origin}, {"nonce": b"n" * 32, "policy_digest": "0" * 64})
        return network.callbacks["server"](request).get_header(MessageHeaderKey.RETURN_CODE)

    codes = [ask(f"hospital-b.job{number}") for number in range(2000)]  # all its processes share one allowance
    assert codes.count(ReturnCode.OK) == 8
    assert set(codes) == {ReturnCode.OK, ReturnCode.SERVICE_UNAVAILABLE}
    assert ask("hospital-a") == ReturnCode.OK
    assert ask("stranger") == ReturnCode.SERVICE_UNAVAILABLE


def test_a_device_that_makes_no_report_is_no_crash(federation, monkeypatch):
    _, managers, folder = federation

    def broken(self, report_data):
        raise ConfigError("tsm_busy: the device is busy")

    monkeypatch.setattr(software.SoftwareAttester, "report", broken)
    assert not any(ok for ok, _ in _resources(managers["server"], HOSPITALS).values())
    assert {line["codes"][0][0] for line in _audit(folder, "server")} == {"no_answer"}


def test_a_fault_leaves_a_record_that_anybody_can_check(federation):
    network, managers, folder = federation
    foreign = load_kit(folder / "hospital-a", datetime.now(UTC)).attester

    def lent(reply):
        body = signing.unverified_body(reply.payload["evidence"])
        kit = load_kit(folder / "hospital-b", datetime.now(UTC))
        context = msgspec.convert(body["context"], Context)
        nonce = base64.b64decode(body["nonce"])
        evidence = make_evidence(foreign, context, nonce, ProcessKeys.generate(), kit.mtls_key)
        return make_reply(ReturnCode.OK, body={"evidence": evidence})

    network.tamper["hospital-b"] = lent
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == ["hospital-a"]
    (path,) = (folder / "server" / FAULT_FOLDER).iterdir()
    kit = load_kit(folder / "server", datetime.now(UTC))
    failures = fault.verify(
        json.loads(path.read_text()),
        verifier_key=kit.study.coordinator.mtls_key,
        peer="hospital-b",
        peer_key=kit.study.hospital("hospital-b").mtls_key,
        study=kit.study.digest,
        trust=kit.trust,
        now=datetime.now(UTC),
    )
    assert [code for code, _ in failures] == ["tee_holder"]
    assert kit.standing("hospital-b").state == "quarantined"
    assert _audit(folder, "server")[-1]["state"] == "quarantined"


def test_an_answer_that_cannot_be_settled_costs_only_its_sender(federation, monkeypatch):
    """Judged and then written down: an exception in either must not end the round for those who come later."""
    _, managers, folder = federation
    real = CordonCCManager._record

    def broken(self, name, evidence, appraisal):
        if name == "hospital-a":
            raise OSError("no space left")
        real(self, name, evidence, appraisal)

    monkeypatch.setattr(CordonCCManager, "_record", broken)
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == ["hospital-b"]
    assert _audit(folder, "server")[0]["codes"][0][:2] == ["internal_error", "fail"]


def test_foreign_signatures_in_an_envelope_are_not_carried_along(federation):
    """A verifier of DSSE skips signatures by unknown keys; whatever they hold would go into records and break them."""
    network, managers, folder = federation

    def stuffed(reply):
        evidence = reply.payload["evidence"]
        more = [*evidence["signatures"], {"keyid": 2**70, "sig": ""}, *({"keyid": "x" * 10_000, "sig": ""},) * 50]
        return make_reply(ReturnCode.OK, body={"evidence": {**evidence, "signatures": more}})

    network.tamper["hospital-a"] = stuffed
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == ["hospital-b"]
    assert not (folder / "server" / FAULT_FOLDER).exists()
    assert _audit(folder, "server")[0]["codes"][0][0] == "evidence_format"


def test_a_standing_that_cannot_be_written_attests_nobody(federation, monkeypatch):
    _, managers, folder = federation
    _resources(managers["server"], HOSPITALS)
    path = folder / "server" / STANDING_FILE
    assert load_kit(folder / "server", datetime.now(UTC)).standing("hospital-a").state == "attested"
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        standing.write(path, {})
    assert not path.exists()
    assert load_kit(folder / "server", datetime.now(UTC)).standing("hospital-a").state == "unattested"


def test_a_silent_peer_spoils_nobodys_answer(federation, monkeypatch):
    """FLARE waits for all of a batch: the wait ends well before the others' challenges do, and is not repeated."""
    network, managers, _ = federation
    waits = []
    cell = network.cells["server"]
    real = cell.broadcast_multi_requests

    def wait(messages, timeout, optional):
        waits.append((sorted(messages), timeout))
        return real(messages, timeout, optional)

    monkeypatch.setattr(cell, "broadcast_multi_requests", wait)
    silent = network.callbacks.pop("hospital-a")
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == ["hospital-b"]
    assert all(timeout <= managers["server"]._kit.attest_policy.max_age_s / 4 for _, timeout in waits)
    managers["server"]._quiet_until.clear()
    managers["server"]._verifier.standings.clear()
    waits.clear()
    _resources(managers["server"], HOSPITALS)
    assert [asked for asked, _ in waits] == [["hospital-b"], ["hospital-a"]]
    managers["server"]._quiet_until.clear()
    network.callbacks["hospital-a"] = silent
    assert [site for site, (ok, _) in _resources(managers["server"], HOSPITALS).items() if ok] == list(HOSPITALS)
