"""Who runs the coordinator's machine, or one hospital, and wants an update or a model that is sealed to somebody else.

The coordinator's job process is honest code with keys of its own; the operator around it holds the kit, sees and
changes every message, kills the process and starts others. A site goes along with one such process at a time.
"""

import base64
import copy
import gc
import json
import resource
import shutil
import weakref
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nvflare.fuel.utils import fobs

from cordon import messages, sealing, signing
from cordon.asyncfl.coordinator import Coordinator
from cordon.attest.appraise import EVIDENCE_TYPE
from cordon.attest.keys import ProcessKeys
from cordon.errors import BrokerUnavailable, SealError, UpdateRejected
from cordon.flare import controllers, data_key, executors, key_records, session
from cordon.flare.kit import load_kit
from cordon.flare.ledger_heads import HEADS_FILE, LedgerHeads
from cordon.flare.run import Run
from cordon.messages import LedgerHead
from fakes.federation_kits import HOSPITALS, SERVER, make_kits, stand
from fakes.in_process import JOB_ID, message, open_message, said
from fakes.lease_holder import Seconds, Wire, opened, until
from fakes.needles import Needles, forms

SITE = "hospital-a"
BROKERS = "cordon_broker"


def _of(log, kind, site=None):
    return [event for event in log if event["kind"] == kind and site in (None, event.get("site"))]


@pytest.fixture
def coordinator(hand):
    made = hand()
    made.attest()
    return made


@pytest.fixture
def admitted(coordinator, trained):
    """After one honest round, under ticket "one"."""
    reply = coordinator.train(coordinator.model(evidence=coordinator.evidence(), ticket="one"))
    assert said(reply) == ""
    coordinator.first = reply
    return coordinator


def _another(coordinator):
    """A second process of the same coordinator: the same code, kit and job, keys of its own."""
    other = copy.copy(coordinator)
    other.keys = ProcessKeys.generate()
    return other


def _takes_over(other, **changes):
    """The site's answer to the model of a process that shows fresh evidence for the site's own challenge."""
    other.attest()
    return other.train(other.model(evidence=other.evidence(), **changes))


# -- reading what is not one's own -----------------------------------------------------------------------------------


def test_the_operator_opens_no_captured_payload_with_any_key_that_the_kits_hold(admitted, kits):
    """Whoever has every file of every kit, and of the provisioner and the brokers, has no KEM key of a process."""
    parts, payload = open_message(admitted.first)
    header = msgspec.convert(signing.unverified_body(parts["update"]), messages.UpdateHeader)
    assert messages.open_payload(header, payload, admitted.keys.kem_key)  # it does open
    secrets = []
    for path in kits.rglob("*"):
        if not path.is_file() or path.suffix not in (".key", ".pem", "") or path.stat().st_size > 10_000:
            continue
        data = path.read_bytes()
        if b"-----BEGIN" in data:
            data = base64.b64decode(b"".join(line for line in data.splitlines() if not line.startswith(b"-----")))
        secrets += [data[at : at + 96] for at in range(0, len(data) - 95, 16)] + [(data[-32:] * 3)[:96]]
    assert len(secrets) > 50
    for secret in secrets:
        if len(secret) == sealing.KEM_SECRET_BYTES:
            with pytest.raises(UpdateRejected, match="bad_seal"):
                messages.open_payload(header, payload, sealing.KemKey.from_secret(secret).private)


@pytest.mark.parametrize("whose", ["another process of the coordinator", "the site itself"])
def test_another_process_does_not_open_an_update(admitted, whose):
    keys = {"the site itself": admitted.site.session.keys}.get(whose, ProcessKeys.generate())
    with pytest.raises(UpdateRejected, match="bad_seal"):
        admitted.opened(admitted.first, keys)


def test_an_update_does_not_open_as_a_model_nor_under_any_other_purpose(admitted):
    parts, payload = open_message(admitted.first)
    header = msgspec.convert(signing.unverified_body(parts["update"]), messages.UpdateHeader)
    for purpose in ("cordon/model/v1", "cordon/release/v1", ""):
        with pytest.raises(SealError):
            sealing.open_sealed(payload, admitted.keys.kem_key, purpose, messages._bound(header))


def test_what_passes_and_what_the_coordinator_s_disk_holds_is_no_update_and_no_model(federate, kits, monkeypatch):
    plain, passed = {}, []

    def note(header, plaintext, key, *, real=messages.seal):
        for form in forms(plaintext):
            plain[form] = type(header).__name__
        return real(header, plaintext, key)

    monkeypatch.setattr(messages, "seal", note)
    federation = federate()
    federation.on_task = lambda site, task, shareable: passed.append(fobs.dumps(shareable)) or shareable
    federation.on_reply = lambda site, task, reply: passed.append(fobs.dumps(reply)) or [reply]
    log = federation.run()
    assert len(_of(log, "version")) == 3
    assert set(plain.values()) == {"ModelHeader", "UpdateHeader"}
    needles = Needles(plain)
    for data in passed:
        assert not needles.found_in(data)
    for path in kits.rglob("*"):
        if path.is_file():
            assert not needles.found_in(path.read_bytes()), path
    assert needles.found_in(b"..." + next(iter(plain)))  # and it would be found


# -- passing off another key -----------------------------------------------------------------------------------------


def test_evidence_with_the_operator_s_kem_key_put_in_is_refused(coordinator, trained):
    """Signed anew with the kit's mTLS key, which the operator has; but the report covers the process's own key."""
    body = signing.unverified_body(coordinator.evidence())
    body["kem_public_key"] = base64.b64encode(ProcessKeys.generate().kem_public_bytes).decode()
    forged = signing.sign(coordinator.kit.mtls_key, EVIDENCE_TYPE, body)
    assert said(coordinator.train(coordinator.model(evidence=forged))) == "attestation_failed"
    assert trained == []
    assert coordinator.site.session.coordinator is None


@pytest.mark.parametrize("swapped", ["kem", "signing"])
def test_a_renewal_that_keeps_one_key_and_swaps_the_other_is_refused(admitted, trained, swapped):
    mine, other = admitted.keys, ProcessKeys.generate()
    mixed = (
        ProcessKeys(other.kem_key, other.kem_public_bytes, mine.signing_key)
        if swapped == "kem"
        else ProcessKeys(mine.kem_key, mine.kem_public_bytes, other.signing_key)
    )
    admitted.attest()
    model = admitted.model(evidence=admitted.evidence(keys=mixed), key=mixed.signing_key)
    assert said(admitted.train(model)) == "attestation_failed"
    assert admitted.site.session.coordinator.names[1] == sealing.kem_digest(mine.kem_public_bytes)
    assert len(trained) == 1


def test_a_site_that_renews_with_another_kem_key_is_out(federate, clock):
    """The coordinator would seal models to it: to whoever holds the new key."""
    federation = federate(versions=6, rounds_per_site=8)
    attests = []

    def swap(site, task, shareable):
        if (site, task) == (SITE, "attest"):
            attests.append(site)
            if len(attests) == 2:
                keys, other = federation.sites[site].session.keys, ProcessKeys.generate()
                mixed = ProcessKeys(other.kem_key, other.kem_public_bytes, keys.signing_key)
                federation.sites[site].session.keys = mixed
        return shareable

    def slow(site, task, reply):
        if task == "train":
            clock.sleep(10.0)
        return [reply]

    federation.on_task, federation.on_reply = swap, slow
    log = federation.run()
    assert len(attests) >= 2
    assert [each["reason"] for each in _of(log, "refused", SITE)] == ["attestation_failed"]


# -- models ----------------------------------------------------------------------------------------------------------


def _model(coordinator, change):
    """A model whose sealed bytes or header were changed after sealing, signed by the process all the same."""
    header, sealed = messages.seal(coordinator.header(), messages.pack("w", coordinator.w), coordinator.sealed_for)
    header, sealed = change(header, sealed)
    envelope = messages.sign(coordinator.keys.signing_key, header)
    return message({"model": envelope, "links": {"after": -1, "sha256": coordinator.links}}, sealed)


def _as_sent(header, sealed):
    return msgspec.structs.replace(header, payload_sha256=messages.sha256(sealed)), sealed


@pytest.mark.parametrize(
    "change",
    [
        lambda header, sealed: (msgspec.structs.replace(header, ticket="f" * 32), sealed),
        lambda header, sealed: _as_sent(header, sealed[:-1]),
        lambda header, sealed: _as_sent(header, sealed + b"\0"),
        lambda header, sealed: _as_sent(header, sealed + bytes(5000)),
        lambda header, sealed: _as_sent(header, sealed[: sealing.OVERHEAD - 1]),
        lambda header, sealed: _as_sent(header, b""),
        lambda header, sealed: _as_sent(header, bytes([sealed[0] ^ 1]) + sealed[1:]),
    ],
    ids=["another ticket", "truncated", "longer", "oversized", "no message", "empty", "encapsulation changed"],
)
def test_a_model_changed_after_it_was_sealed(admitted, trained, change):
    assert said(admitted.train(_model(admitted, lambda header, sealed: (header, sealed)))) == ""
    assert said(admitted.train(_model(admitted, change))) == "bad_message"
    assert len(trained) == 2


def test_a_model_longer_than_any_is_refused_before_it_is_copied_or_hashed(admitted, trained, monkeypatch):
    model = _model(admitted, lambda header, sealed: _as_sent(header, sealed + bytes(5000)))
    opened_payloads = []
    monkeypatch.setattr(messages, "open_payload", lambda *args: opened_payloads.append(args))
    assert said(admitted.train(model)) == "bad_message"
    assert opened_payloads == []
    assert len(trained) == 1


def test_a_model_sealed_to_another_site(admitted, trained):
    other = sealing.decode_kem_key(ProcessKeys.generate().kem_public_bytes)
    assert said(admitted.train(admitted.model(sealed_for=other))) == "bad_message"
    assert len(trained) == 1


def test_a_model_in_the_clear(admitted, trained):
    packed = messages.pack("w", admitted.w)
    assert said(admitted.train(_model(admitted, lambda header, sealed: _as_sent(header, packed)))) == "bad_message"
    assert len(trained) == 1


# -- updates that are not what their header says ---------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Rounds that train nothing: what is judged here is the message."""
    rng = np.random.default_rng(0)

    def train(module, x, y, plan, learning_rate, should_stop):
        should_stop()
        return (0.05 * rng.standard_normal(31)).astype(np.float32)

    monkeypatch.setattr(executors, "train_round", train)


def _signed(site, header, payload):
    header = msgspec.structs.replace(header, payload_sha256=messages.sha256(payload))
    return message({"update": messages.sign(site.session.keys.signing_key, header)}, payload)


def _taken_apart(reply):
    parts, payload = open_message(reply)
    return msgspec.convert(signing.unverified_body(parts["update"]), messages.UpdateHeader), payload


@pytest.mark.parametrize("whose", ["an earlier round of its own", "another site's"])
def test_a_sealed_payload_moved_under_a_header_of_this_ticket_does_not_open(federate, quick, whose):
    """A replay under a new ticket, or somebody else's update passed off as one's own (with other weights)."""
    federation = federate(versions=4)
    captured = {}

    def swap(site, task, reply):
        if task != "train":
            return [reply]
        header, payload = _taken_apart(reply)
        donor = SITE if whose == "another site's" else "hospital-b"
        stolen = captured.get(donor)
        if site == donor:
            captured.setdefault(site, payload)
        if site == "hospital-b" and stolen is not None:
            return [_signed(federation.sites[site], header, stolen)]
        return [reply]

    federation.on_reply = swap
    log = federation.run()
    assert [(each["reason"], each["faults"]) for each in _of(log, "rejected", "hospital-b")] == [
        ("bad_seal", 1),
        ("bad_seal", 2),
    ]
    assert len(_of(log, "version")) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"base_version": 1},
        {"model_chain_head": "0" * 64},
        {"layout_digest": "0" * 64},
        {"privacy": "masked"},
        {"dp_event": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_header_changed_after_sealing_and_signed_again_does_not_open(federate, quick, change):
    federation = federate(versions=4)

    def spoil(site, task, reply):
        if (site, task) != ("hospital-b", "train"):
            return [reply]
        header, payload = _taken_apart(reply)
        event = msgspec.structs.replace(header.dp_event, noise_multiplier=7.0)
        changed = {name: event if name == "dp_event" else value for name, value in change.items()}
        return [_signed(federation.sites[site], msgspec.structs.replace(header, **changed), payload)]

    federation.on_reply = spoil
    log = federation.run()
    assert [each["reason"] for each in _of(log, "rejected", "hospital-b")] == ["bad_seal"] * 2
    assert not _of(log, "update", "hospital-b")


def test_sealed_to_another_key_and_signed_as_if_it_were_not_is_a_fault(federate, quick):
    federation = federate(versions=4)
    other = sealing.decode_kem_key(ProcessKeys.generate().kem_public_bytes)

    def elsewhere(site, task, reply):
        if (site, task) != ("hospital-b", "train"):
            return [reply]
        header, _ = _taken_apart(reply)
        header, sealed = messages.seal(header, federation.sites[site].session.trained.plaintext, other)
        return [_signed(federation.sites[site], header, sealed)]

    federation.on_reply = elsewhere
    log = federation.run()
    assert [each["reason"] for each in _of(log, "rejected", "hospital-b")] == ["bad_seal"] * 2
    assert len(_of(log, "excluded", "hospital-b")) == 1


def test_an_update_for_another_process_counts_for_nothing_and_is_nobody_s_fault(federate, quick):
    """Who carries the messages could otherwise have an honest site thrown out with what it sent to another process."""
    federation = federate(versions=4)
    other = ProcessKeys.generate()

    def also(site, task, reply):
        if (site, task) != ("hospital-b", "train"):
            return [reply]
        kept = federation.sites[site].session
        keys = copy.copy(kept.coordinator)
        object.__setattr__(keys, "kem_key", sealing.decode_kem_key(other.kem_public_bytes))
        object.__setattr__(keys, "names", (keys.names[0], sealing.kem_digest(other.kem_public_bytes)))
        envelope, payload = kept.seal_update(keys)
        return [message({"update": envelope}, payload), reply]

    federation.on_reply = also
    log = federation.run()
    rejected = _of(log, "rejected", "hospital-b")
    assert rejected
    assert {(each["reason"], each["faults"]) for each in rejected} == {("bad_seal", 0)}
    assert len(_of(log, "update", "hospital-b")) == len(_of(log, "ticket", "hospital-b"))


# -- the coordinator's process started again: what a site goes along with --------------------------------------------


def test_a_new_process_gets_the_same_update_and_the_site_spends_nothing(admitted, trained):
    other = _another(admitted)
    reply = _takes_over(other, ticket="one")
    assert other.opened(reply)[1] == admitted.opened(admitted.first)[1]
    assert other.opened(reply)[0].sealed_to == sealing.kem_digest(other.keys.kem_public_bytes)
    with pytest.raises(UpdateRejected, match="bad_seal"):
        other.opened(reply, admitted.keys)
    assert trained == [1]
    assert admitted.site.session.rounds_used == 1


def test_the_old_process_is_refused_for_good_once_it_was_replaced(admitted, trained, clock):
    """No flip-flop: two processes that take turns could each mix the same updates with others."""
    other = _another(admitted)
    assert said(_takes_over(other, ticket="two")) == ""
    assert said(admitted.train(admitted.model())) == "bad_message"  # under its own, once pinned key
    for _ in range(2):
        assert said(_takes_over(admitted, ticket="one")) == "attestation_failed"
    third = _another(admitted)
    assert said(_takes_over(third, ticket="three")) == ""
    for replaced in (admitted, other):
        assert said(_takes_over(replaced, ticket="four")) == "attestation_failed"
    clock.now += admitted.site.session.kit.attest_policy.lease_s + 1  # nor when the present one is late
    assert said(_takes_over(other, ticket="four")) == "attestation_failed"
    assert said(_takes_over(third, ticket="five")) == ""
    assert len(trained) == 4


def _older(other, coordinator):
    other.links, other.head = coordinator.links[:1], messages.chain_head("", 0, coordinator.links[0])
    other.w = coordinator.w - np.float32(0.01)


def _forked(other, coordinator):
    other.links, other.head = coordinator.links[:1], messages.chain_head("", 0, coordinator.links[0])
    other.next_version(coordinator.w + np.float32(0.5))


def _forked_and_longer(other, coordinator):
    _forked(other, coordinator)
    other.next_version()


def _own_beginning(other, coordinator):
    other.links, other.head = [], ""
    other.next_version(coordinator.w)
    other.next_version(coordinator.w)
    assert other.version == coordinator.version


@pytest.mark.parametrize("how", [_older, _forked, _forked_and_longer, _own_beginning])
def test_a_new_process_off_the_chain_is_refused_and_replaces_nobody(admitted, trained, how):
    """Genuine, attested, but it begins anew or goes on from an older copy: it would mix the same updates once more."""
    admitted.next_version()
    assert said(admitted.train(admitted.model(ticket="two"))) == ""
    other = _another(admitted)
    other.links = list(admitted.links)
    how(other, admitted)
    for ticket in ("two", "three"):
        assert said(_takes_over(other, ticket=ticket)) == "bad_message"
    assert said(admitted.train(admitted.model(ticket="three"))) == ""
    assert len(trained) == 3
    assert admitted.site.session.replaced == set()


def test_a_new_process_whose_parent_is_not_attested_here_is_refused(admitted, trained):
    other = _another(admitted)
    stand(admitted.site.root, SERVER, "quarantined", reasons=("measurement",))
    assert said(_takes_over(other, ticket="one")) == "coordinator_not_attested"
    assert admitted.site.session.replaced == set()


# -- the coordinator's process started again: what it counts ---------------------------------------------------------


class Died(Exception):
    """The coordinator's process is gone."""


@pytest.fixture
def runs(monkeypatch):
    """Every Run that was made, and every update that any of them counted as (site, ticket, delta)."""
    made, counted = [], []

    class Kept(Run):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    submit = Coordinator.submit

    def counting(self, site, header, delta):
        accepted = submit(self, site, header, delta)
        counted.append((site, header.ticket, messages.pack("delta", delta)))
        return accepted

    monkeypatch.setattr(controllers, "Run", Kept)
    monkeypatch.setattr(Coordinator, "submit", counting)
    return made, counted


def _dies_after(federation, lost, rounds):
    """The first process dies once ``rounds`` rounds were trained; what the ``lost`` sites sent never arrived."""
    trained, kept = [], {}

    def cut(site, task, reply):
        if task == "train":
            trained.append(site)
            kept[site] = reply
            if site in lost:
                reply = None
        return [] if reply is None else [reply]

    federation.on_reply = cut
    wait = federation.inbox.get

    def mortal(block=True, timeout=None):
        if len(trained) >= rounds and federation.inbox.empty():
            raise Died
        return wait(block, timeout)

    federation.inbox.get = mortal
    with pytest.raises(Died):
        federation.run()
    federation.inbox.get = wait
    federation.on_reply = lambda site, task, reply: [reply]
    federation.pending.clear()
    return kept


def _again(federation, state):
    """A new process over ``state``; its events."""
    folder = federation.run_dir / "again"
    folder.mkdir()
    kit = load_kit(federation.kits / SERVER, datetime.now(UTC))
    job, job_id, _ = session.load_job(federation.engine.new_context())
    run = Run(federation.controller, federation.inbox, kit, job, job_id, folder, state)
    return run, folder


def _train(run, folder):
    try:
        run.train()
    finally:
        run.close()
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_new_process_makes_the_version_once_from_the_updates_that_were_trained_for_the_old_one(
    federate, runs, trained
):
    federation = federate(versions=1)
    kept = _dies_after(federation, ("hospital-c", "hospital-d"), 4)
    (old,), counted = runs
    assert old.state.buffered == (SITE, "hospital-b")
    before = {name: site.session.trained for name, site in federation.sites.items()}
    used = dict(old.state.rounds_used)

    run, folder = _again(federation, old.state)
    for name in ("hospital-c", SITE):  # what was on its way to the old process comes to the new one
        federation.inbox.put(("result", name, executors.FLModelUtils.from_shareable(kept[name])))
    log = _train(run, folder)

    assert log[-1]["versions"] == 1
    assert _of(log, "version")[0]["sites"] == [SITE, "hospital-b", "hospital-c"]
    assert len(trained) == 4
    assert run.state.rounds_used == used == dict.fromkeys(HOSPITALS, 1)
    assert {name: site.session.rounds_used for name, site in federation.sites.items()} == used
    assert len({ticket for _, ticket, _ in counted}) == len(counted) == 3
    assert {site: plain for site, _, plain in counted} == {
        site: before[site].plaintext for site in (SITE, "hospital-b", "hospital-c")
    }
    assert all(faults == [] for faults in run.state.faults.values())
    assert not {"lost", "refused", "excluded", "rejected"} & {event["kind"] for event in log}
    assert run.sealed_to != old.sealed_to


def test_a_new_process_goes_on_to_the_end_and_every_ticket_counts_once(federate, runs, trained):
    federation = federate(versions=4)
    _dies_after(federation, ("hospital-d",), 7)
    (old,), counted = runs
    assert old.state.version >= 1
    assert old.state.outstanding("hospital-d").version == 0  # its model is no longer the newest
    run, folder = _again(federation, old.state)
    log = _train(run, folder)
    assert log[-1] == {**log[-1], "versions": 4, "reason": "all 4 versions made"}
    tickets = [ticket for _, ticket, _ in counted]
    assert len(tickets) == len(set(tickets))
    assert "hospital-d" in {site for site, _, _ in counted}
    unserved = len([1 for _, task in federation.pending if task.name == "train"])  # still out when the job was done
    assert len(trained) == sum(site.session.rounds_used for site in federation.sites.values())
    assert sum(run.state.rounds_used.values()) == len(trained) + unserved
    assert not {"refused", "excluded", "rejected"} & {event["kind"] for event in log}


def test_a_new_process_long_after_the_old_one_still_waits_for_what_is_outstanding(federate, runs, trained, clock):
    federation = federate(versions=1, ticket_timeout_s=60.0)
    _dies_after(federation, ("hospital-c", "hospital-d"), 4)
    clock.now += 3600.0
    run, folder = _again(federation, runs[0][0].state)
    log = _train(run, folder)
    assert log[-1]["versions"] == 1
    assert not _of(log, "lost")
    assert len(trained) == 4


def test_a_process_that_dies_with_a_full_buffer_has_its_version_made_by_the_next(federate, runs, trained, monkeypatch):
    federation = federate(versions=1)

    def die(self):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_apply", die)
        with pytest.raises(Died):
            federation.run()
    federation.pending.clear()
    state = runs[0][0].state
    assert state.ready()
    federation.on_reply = lambda site, task, reply: []  # and if no site answers it: what was given is not lost
    run, folder = _again(federation, state)
    log = _train(run, folder)
    assert _of(log, "version")[0]["sites"] == [SITE, "hospital-b", "hospital-c"]
    assert len(trained) == len(runs[1]) == 3


def test_what_was_sealed_to_the_old_process_is_no_fault_at_the_new_one(federate, runs, quick):
    federation = federate(versions=2)
    kept = _dies_after(federation, ("hospital-c", "hospital-d"), 4)
    (old,), counted = runs
    run, folder = _again(federation, old.state)
    replayed = []

    def replay(site, task, reply):
        if task == "train" and not replayed:  # all of it, counted or not, after the sites were admitted
            replayed.extend(kept)
            for name, each in kept.items():
                federation.inbox.put(("result", name, executors.FLModelUtils.from_shareable(each)))
        return [reply]

    federation.on_reply = replay
    log = _train(run, folder)
    assert log[-1]["versions"] == 2
    assert {(each["reason"], each["faults"]) for each in _of(log, "rejected")} == {("bad_seal", 0)}
    assert all(faults == [] for faults in run.state.faults.values())
    assert len({ticket for _, ticket, _ in counted}) == len(counted)


def test_a_new_process_over_an_older_copy_gets_no_update_of_a_site_that_saw_more(federate, runs, quick):
    """The operator keeps a copy of version 0, lets the job go on, then starts another process over the copy."""
    federation = federate(versions=4)
    copies = []

    def snapshot(site, task, reply):
        if task == "train" and not copies:
            copies.append(copy.deepcopy(runs[0][0].state))
        return [reply]

    federation.on_reply = snapshot
    assert federation.run()[-1]["versions"] == 4
    assert copies[0].version == 0
    (_old,), counted = runs
    before = len(counted)
    run, folder = _again(federation, copies[0])
    log = _train(run, folder)
    assert len(_of(log, "refused")) >= 2  # then too few are left, and the job ends
    assert {each["reason"] for each in _of(log, "refused")} == {"bad_message"}
    assert len(counted) == before
    assert log[-1]["versions"] == 0


# -- ledger heads ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_broker(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("brokers"), vaults=(SITE,))


@pytest.fixture
def vaulted(with_broker, tmp_path):
    """Kits in which hospital-a keeps its data in a vault; the others' lie open."""
    return Path(shutil.copytree(with_broker, tmp_path / "vaulted"))


@pytest.fixture
def broker(vaulted, monkeypatch):
    """The broker of hospital-a, reached without a network; ``wire.clock`` is the one that leases are measured on."""
    with opened(vaulted / BROKERS, SITE) as tenant:
        wire, held = Wire(tenant), []
        wire.clock = Seconds()

        class Key(data_key.DataKey):
            @classmethod
            def acquire(cls, kit, job, job_id, keys):
                held.append(super().acquire(kit, job, job_id, keys, connect=lambda _kit: wire, clock=wire.clock))
                return held[-1]

        monkeypatch.setattr(session, "DataKey", Key)
        wire.held = held
        yield wire
        for each in held:
            each.close()


def test_every_update_carries_the_ledger_head_of_its_lease_and_the_coordinator_keeps_the_newest(
    federate, vaulted, broker, quick
):
    federation = federate(folder=vaulted)
    heads = []

    def look(site, task, reply):
        if task == "train":
            heads.append((site, _taken_apart(reply)[0].ledger))
        return [reply]

    federation.on_reply = look
    log = federation.run()
    assert len(_of(log, "version")) == 3
    assert not _of(log, "rejected")
    assert all((head is not None) == (site == SITE) for site, head in heads)
    kept = json.loads((vaulted / SERVER / HEADS_FILE).read_text())["heads"]
    assert list(kept.values()) == [signing.unverified_body(broker.held[0].ledger)]


@pytest.mark.parametrize("lie", ["none", "older", "fork", "another broker"])
def test_a_site_that_sends_another_ledger_head_than_its_broker_s_newest_is_refused(
    federate, vaulted, broker, quick, lie
):
    federation = federate(folder=vaulted, versions=4)
    tenant = broker.broker

    def head(**changes):
        body = {**signing.unverified_body(broker.held[0].ledger), **changes}
        key = ProcessKeys.generate().signing_key if lie == "another broker" else tenant.signing_key
        return messages.sign(key, msgspec.convert(body, LedgerHead))

    lies = {
        "none": lambda seq: None,
        "older": lambda seq: head(seq=seq - 1),
        "fork": lambda seq: head(head="0" * 64),
        "another broker": lambda seq: head(),
    }

    def spoil(site, task, reply):
        if (site, task) != (SITE, "train"):
            return [reply]
        seen = (vaulted / SERVER / HEADS_FILE).exists()
        if not seen and lie in ("older", "fork"):  # first the right one
            return [reply]
        here = federation.sites[site].session
        seq = signing.unverified_body(here.data_key.ledger)["seq"]
        header = msgspec.structs.replace(here.trained.header, ledger=lies[lie](seq))
        header = msgspec.structs.replace(header, sealed_to=here.coordinator.names[1])
        header, sealed = messages.seal(header, here.trained.plaintext, here.coordinator.kem_key)
        return [_signed(federation.sites[site], header, sealed)]

    federation.on_reply = spoil
    log = federation.run()
    assert [each["reason"] for each in _of(log, "rejected", SITE)] == ["bad_ledger"] * 2
    assert len(_of(log, "excluded", SITE)) == 1


def test_a_broker_whose_ledger_was_set_back_between_two_jobs_is_noticed_by_the_coordinator(
    federate, vaulted, broker, quick
):
    federation = federate(folder=vaulted)
    federation.run()
    path = vaulted / SERVER / HEADS_FILE
    kept = json.loads(path.read_text())
    for each in kept["heads"].values():
        each["seq"] += 5  # what an earlier job had seen before the copy was put back
    path.write_text(json.dumps(kept))
    again = LedgerHeads(vaulted / SERVER)
    hospital = load_kit(vaulted / SERVER, datetime.now(UTC)).study.hospital(SITE)
    with pytest.raises(UpdateRejected, match="rolled back"):
        again.check(hospital, broker.broker.head(), datetime.now(UTC))


# -- the data key ----------------------------------------------------------------------------------------------------


@pytest.fixture
def held(hand, vaulted, broker):
    """(coordinator after its challenge, its first model) for a site that holds a leased data key."""
    coordinator = hand(folder=vaulted)
    assert "refusal" not in coordinator.attest()
    assert len(broker.held) == 1
    return coordinator, coordinator.model(evidence=coordinator.evidence(), ticket="one")


@pytest.fixture
def sealings(monkeypatch):
    """Grows with every update that is sealed."""
    sealed = []

    def note(header, plaintext, key, *, real=messages.seal):
        if isinstance(header, messages.UpdateHeader):
            sealed.append(header.ticket)
        return real(header, plaintext, key)

    monkeypatch.setattr(messages, "seal", note)
    return sealed


def _revoke(broker):
    """Takes the lease back, and waits until the site's process has heard of it."""
    broker.broker.revoke(datetime.now(UTC), job=JOB_ID)
    until(5.0, lambda: broker.held[0]._over is not None)


def test_a_site_reads_its_vault_under_the_lease_and_trains(held, broker):
    coordinator, model = held
    header, delta = coordinator.verified_update(coordinator.train(model))
    assert 0 < np.linalg.norm(delta) <= coordinator.job.controller.norm_bound * (1 + 1e-6)
    assert header.ledger == broker.held[0].ledger


def test_a_key_taken_back_in_the_middle_of_a_round_stops_it_and_nothing_leaves(held, broker, sealings, monkeypatch):
    coordinator, model = held
    steps, real = [], executors.train_round

    def train(*args, should_stop, **kwargs):
        def step():
            steps.append(1)
            if len(steps) == 2:
                _revoke(broker)
            return should_stop()

        return real(*args, should_stop=step, **kwargs)

    monkeypatch.setattr(executors, "train_round", train)
    reply = coordinator.train(model)
    assert said(reply) == "key_refused"
    assert set(open_message(reply)[0]) == {"refusal"}
    assert len(steps) == 2  # of 5
    here = coordinator.site.session
    assert (here.patients, here.trained, sealings) == (None, None, [])
    assert here.rounds_used == 1  # spent
    assert said(coordinator.train(coordinator.model(ticket="one"))) == "key_refused"
    assert signing.unverified_body(coordinator.attest()["refusal"])["code"] == "key_refused"
    assert sealings == []


def test_a_key_taken_back_after_training_releases_nothing(held, broker, sealings, monkeypatch):
    coordinator, model = held
    real = executors.train_round

    def train(*args, **kwargs):
        delta = real(*args, **kwargs)
        _revoke(broker)
        return delta

    monkeypatch.setattr(executors, "train_round", train)
    assert said(coordinator.train(model)) == "key_refused"
    assert sealings == []


def test_a_key_taken_back_while_the_update_waits_for_its_tick_stops_it(held, broker, clock, monkeypatch):
    coordinator, model = held
    clock.now += 0.3  # between two ticks
    sleep = clock.sleep

    def revoked(seconds):
        if broker.held[0]._over is None:
            _revoke(broker)
        sleep(seconds)

    monkeypatch.setattr(clock, "sleep", revoked)
    reply = coordinator.train(model)
    assert said(reply) == "key_refused"
    assert open_message(reply)[1] == b""


def test_a_broker_that_is_silent_past_the_lease_holds_the_update_back_and_then_it_is_sent_once(
    held, broker, trained, sealings, monkeypatch
):
    """What was trained is spent: it waits for the key broker, and the same ticket gets the same bytes."""
    coordinator, model = held
    real = executors.train_round

    def train(*args, **kwargs):
        delta = real(*args, **kwargs)
        broker.silent = True
        until(5.0, lambda: isinstance(broker.held[0]._failure, BrokerUnavailable))
        broker.clock.value += 10_000.0
        return delta

    monkeypatch.setattr(executors, "train_round", train)
    assert said(coordinator.train(model)) == "key_unavailable"
    assert said(coordinator.train(coordinator.model(ticket="one"))) == "key_unavailable"
    assert signing.unverified_body(coordinator.attest()["refusal"])["code"] == "key_unavailable"
    for ticket in ("one", "two"):  # sent before it said so, delivered after
        model = coordinator.model(evidence=coordinator.evidence(), ticket=ticket)
        assert said(coordinator.train(model)) == "key_unavailable"
    assert (sealings, trained) == ([], [1])
    plaintext = coordinator.site.session.trained.plaintext
    broker.silent = False
    assert "refusal" not in coordinator.attest()
    reply = coordinator.train(coordinator.model(evidence=coordinator.evidence(), ticket="one"))
    assert coordinator.opened(reply)[1] == plaintext
    assert trained == [1]
    assert coordinator.site.session.rounds_used == 1
    assert len(broker.held) == 2


def test_a_key_that_is_refused_after_its_lease_ran_out_takes_data_and_update_with_it(
    held, broker, sealings, trained, monkeypatch
):
    coordinator, model = held
    assert said(coordinator.train(model)) == ""
    broker.silent = True
    until(5.0, lambda: isinstance(broker.held[0]._failure, BrokerUnavailable))
    broker.clock.value += 10_000.0
    assert said(coordinator.train(coordinator.model(ticket="one"))) == "key_unavailable"
    broker.broker.revoke(datetime.now(UTC), job=JOB_ID)
    broker.silent = False
    assert signing.unverified_body(coordinator.attest()["refusal"])["code"] == "key_refused"
    here = coordinator.site.session
    assert (here.patients, here.trained) == (None, None)
    for ticket in ("one", "two"):
        assert said(coordinator.train(coordinator.model(evidence=coordinator.evidence(), ticket=ticket)))
    assert (sealings, trained) == (["one"], [1])


def test_a_key_taken_back_leaves_no_patient_in_what_the_process_still_holds(held, broker, monkeypatch):
    """An error that is kept keeps the frames it passed through, and so their data."""
    coordinator, model = held
    real, patients = executors.train_round, weakref.ref(coordinator.site.session.patients.x)

    def train(*args, **kwargs):
        _revoke(broker)
        return real(*args, **kwargs)

    monkeypatch.setattr(executors, "train_round", train)
    assert said(coordinator.train(model)) == "key_refused"
    gc.collect()
    assert patients() is None


def test_the_coordinator_s_process_leaves_no_core_file_with_updates_in_it(federate, quick):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("this system writes no core files at all")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        federate().run()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_broker_that_cannot_be_reached_is_asked_again_and_nobody_waits_for_it(federate, vaulted, broker, quick):
    federation = federate(folder=vaulted, versions=8, rounds_per_site=12)
    broker.silent = True
    asked = []

    def mend(site, task, reply):
        asked.append((site, task))
        federation.clock.sleep(1.0)
        if asked.count((SITE, "attest")) == 2:
            broker.silent = False
        return [reply]

    federation.on_reply = mend
    log = federation.run()
    assert {each["reason"] for each in _of(log, "lost", SITE)} == {"key_unavailable; it is asked again"}
    assert not _of(log, "refused")
    assert _of(log, "update", SITE)
    assert len(_of(log, "version")) == 8


def test_a_site_whose_broker_says_no_is_out_before_any_of_its_data_is_read(federate, vaulted, broker, quick):
    broker.broker.revoke(datetime.now(UTC), job=JOB_ID)
    federation = federate(folder=vaulted)
    log = federation.run()
    assert [each["reason"] for each in _of(log, "refused", SITE)] == ["key_refused"]
    assert federation.sites[SITE].session.patients is None
    assert not _of(log, "ticket", SITE)
    assert len(_of(log, "version")) == 3


def test_a_vault_that_was_changed_gives_no_data_and_says_so(federate, vaulted, broker, quick):
    path = next((vaulted / SITE / "data").glob("*.vault"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    log = federate(folder=vaulted).run()
    assert [each["reason"] for each in _of(log, "refused", SITE)] == ["data_vault"]
    assert len(_of(log, "version")) == 3


def test_the_key_is_dropped_when_the_run_ends(held, broker):
    coordinator, _ = held
    site = coordinator.site
    site.executor.handle_event(executors.EventType.END_RUN, site.engine.new_context())
    key = broker.held[0]
    assert key._key == bytearray(32)
    line = json.loads((site.root / key_records.LEASES_FILE).read_text().splitlines()[-1])
    assert (line["decision"], line["code"]) == ("ended", "closed")
