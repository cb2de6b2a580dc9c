"""``cordon broker``, as a hospital's security team uses it: from nothing to a release, and what goes wrong."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon import documents, new_file, signing, study
from cordon.broker.protocol import ChallengeRequest
from cordon.cli import main
from cordon.errors import BrokerUnavailable, Refused
from cordon.flare import key_records
from fakes.broker_ward import PASSPHRASE, Ward
from fakes.key_broker import JOB, OTHER, SITE

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    yield made
    made.hospitals.close()


@pytest.fixture
def cordon(ward: Ward, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``cordon broker WORDS --config ... --json``; (exit code, what it printed)."""

    def run(*words: str) -> tuple[int, Any]:
        code = main(["broker", words[0], "--config", str(ward.config), "--json", *words[1:]])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else said.err

    return run


def add(cordon: Command, ward: Ward) -> None:
    code, said = cordon(
        "add", "--tenant", SITE, "--vault", str(ward.folder / "data.vault"), "--key", str(ward.folder / "vault.key")
    )
    assert (code, said["new"], said["root"]) == (0, True, ward.stamp.root)


def test_from_nothing_to_a_release_and_its_end(ward: Ward, cordon: Command) -> None:
    code, made = cordon("init", "--tls", "broker.hospital.example")
    assert code == 0
    add(cordon, ward)
    process = ward.process()
    with ward.serving() as served:
        client = served.client(made["spki"])
        release = ward.release(client, process)
        lease = signing.unverified_body(release.lease)["lease"]

        code, said = cordon("status")
        mine, other = said["tenants"]
        assert (code, mine["releases"], other["releases"]) == (0, 1, 0)
        assert mine["epsilon"] == pytest.approx(4.08, abs=0.01)
        assert [(each["lease"], each["job"]) for each in mine["leases"]] == [(lease, JOB)]
        assert mine["ledger"]["seq"] == signing.unverified_body(release.ledger)["seq"]

        assert client.lease_state(lease).state == "live"
        code, said = cordon("revoke", "--tenant", SITE, "--lease", lease)
        assert (code, said["new"]) == (0, True)
        assert client.lease_state(lease).state == "revoked"
        with pytest.raises(Refused, match="lease_revoked"):
            ward.release(client, process)
        assert cordon("status")[1]["tenants"][0]["leases"] == []

        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
        with pytest.raises(BrokerUnavailable):
            client.challenge(JOB)
    log = served.log.read_text()
    assert f"code=released lease={lease}" in log
    assert "code=lease_revoked" in log
    for secret in (bytes(range(32)), PASSPHRASE):
        assert secret.hex() not in log
        assert secret.decode("latin-1") not in log


def test_after_a_kill_what_was_decided_is_there_and_the_same_process_is_not_charged_again(
    ward: Ward, cordon: Command
) -> None:
    pin = cordon("init", "--tls", "b")[1]["spki"]
    add(cordon, ward)
    process = ward.process()
    with ward.serving("--json", default=False) as served:
        listening = json.loads(served.line)
        assert (listening["event"], listening["spki"], listening["tenants"]) == ("listening", pin, [SITE, OTHER])
        ward.release(served.client(pin), process)
        served.process.kill()
        served.process.wait(10)
    assert all("time" in json.loads(line) for line in served.log.read_text().splitlines())
    with ward.serving() as served:
        ward.release(served.client(pin), process)
    assert cordon("status")[1]["tenants"][0]["releases"] == 1


def test_init_says_what_contract_and_policy_name_and_makes_nothing_twice(ward: Ward, cordon: Command) -> None:
    code, said = cordon("init", "--tls", "broker.hospital.example")
    contract = ward.hospitals.contract
    for name in (SITE, OTHER):
        assert said["tenants"][name] == {
            "site": name,
            "broker_spki": contract.hospital(name).broker_spki,
            "made": False,
        }
    assert code == 0
    again = cordon("init")
    assert (again[0], again[1]["spki"]) == (0, said["spki"]), "said each time"
    key = (ward.folder / "tls.key").read_bytes()
    assert (ward.folder / "tls.key").stat().st_mode & 0o777 == 0o600
    assert cordon("init", "--tls", "another")[0] == 3
    assert cordon("init", "--kek")[0] == 3
    assert (ward.folder / "tls.key").read_bytes() == key


def test_init_makes_all_of_a_new_broker_before_there_is_a_contract(ward: Ward, cordon: Command) -> None:
    ward.write(
        state="new",
        keys={"backend": "file", "path": "new.kek", "passphrase": {"file": "passphrase"}},
        tenants=[{**ward.tenant(SITE), "study": "later.yml", "study_digest": "0" * 64}],
    )
    code, said = cordon("init", "--kek", "--tls", "b")
    assert (code, said["tenants"][SITE]["made"]) == (0, True)
    signing.decode_spki(said["tenants"][SITE]["broker_spki"])
    (ward.folder / "tls.crt").unlink()
    assert cordon("init")[1]["spki"] is None, "none there to say"
    assert (ward.folder / "new.kek").stat().st_mode & 0o777 == 0o600
    assert (ward.folder / "new").stat().st_mode & 0o777 == 0o700


def test_a_key_that_does_not_open_the_vault_is_not_taken(ward: Ward, cordon: Command) -> None:
    new_file.write(ward.folder / "other.key", bytes(32))
    code, said = cordon(
        "add", "--tenant", SITE, "--vault", str(ward.folder / "data.vault"), "--key", str(ward.folder / "other.key")
    )
    assert code == 1
    assert "key" in said
    no_vault = str(ward.folder / "patients.csv")
    assert cordon("add", "--tenant", SITE, "--vault", no_vault, "--key", str(ward.folder / "vault.key"))[0] == 3
    assert cordon("add", "--tenant", "nobody", "--vault", no_vault, "--key", no_vault)[0] == 3


def test_receipts_verify_with_the_contracts_key_and_no_other(ward: Ward, cordon: Command) -> None:
    pin = cordon("init", "--tls", "b")[1]["spki"]
    add(cordon, ward)
    with ward.serving() as served:
        client, process = served.client(pin), ward.process()
        ward.release(client, process)
        with pytest.raises(Refused, match="bad_request"):
            client.release({}, {})
    code, said = cordon("receipts", "--tenant", SITE)
    assert [signing.unverified_body(each)["decision"] for each in said["receipts"]] == ["released", "bad_request"]
    assert len(cordon("receipts", "--tenant", SITE, "--since", "1")[1]["receipts"]) == 1

    right, wrong = ward.folder / "right.spki", ward.folder / "wrong.spki"
    right.write_text(f"{ward.hospitals.contract.hospital(SITE).broker_spki}\n")
    wrong.write_text(f"{ward.hospitals.contract.hospital(OTHER).broker_spki}\n")
    code, said = cordon("receipts", "--tenant", SITE, "--verify", "--spki", str(right))
    assert (code, said["verified"]["seq"]) == (0, 2)
    assert cordon("receipts", "--tenant", SITE, "--verify", "--spki", str(wrong))[0] == 1
    assert cordon("receipts", "--tenant", SITE, "--verify", "--spki", str(right), "--since", "3")[0] == 1
    assert cordon("receipts", "--tenant", SITE, "--verify")[0] == 3


@pytest.fixture
def audited(ward: Ward, cordon: Command) -> tuple[str, Path, Path]:
    """(broker.spki of the site policy, file of receipts: released, refused; key_leases.jsonl of the kit)."""
    pin = cordon("init", "--tls", "b")[1]["spki"]
    add(cordon, ward)
    with ward.serving() as served:
        client, process = served.client(pin), ward.process()
        release = ward.release(client, process)
        with pytest.raises(Refused, match="bad_request"):
            client.release({}, {})
    kit = ward.folder / "kit"
    kit.mkdir()
    for receipt in (release.receipt, None):
        now = datetime.now(UTC)
        key_records.append(kit, now, job=JOB, lease="", decision="released", code="", expires=None, receipt=receipt)
    envelopes = cordon("receipts", "--tenant", SITE)[1]["receipts"]
    path = ward.folder / "a.receipts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in envelopes))
    return pin, path, kit / key_records.LEASES_FILE


def audit(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """As an auditor who has no broker runs it: (exit code, all that it said)."""
    code = main(["broker", "receipts", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_an_auditor_verifies_a_file_of_receipts_without_the_broker(
    ward: Ward, cordon: Command, audited: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, path, leases = audited
    by_contract = ("--study", ward.folder / "study.yml", "--site", SITE)
    whole = ward.folder / "whole.json"
    whole.write_text(json.dumps(cordon("receipts", "--tenant", SITE)[1]))
    ward.config.unlink()
    (ward.folder / "kek").unlink()
    for each in (path, whole):
        code, said = audit(capsys, "--file", each, *by_contract, "--leases", leases)
        assert code == 0
        assert "2 receipts: chain and signatures hold" in said
        assert f"1 receipts in {leases}: all are among them" in said
    code, said = audit(capsys, "--file", path, *by_contract, "--json")
    assert (code, json.loads(said)["verified"]["seq"]) == (0, 2)

    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(second)
    assert audit(capsys, "--file", path, *by_contract)[0] == 1, "the first is gone"
    path.write_text("")
    code, said = audit(capsys, "--file", path, *by_contract)
    assert (code, said) == (0, "no receipts\n")
    code, said = audit(capsys, "--file", path, *by_contract, "--leases", leases)
    assert code == 1
    assert "receipt 1 of" in said, "the end was cut off, and the site holds it"
    path.write_text(first + "{")
    code, said = audit(capsys, "--file", path, *by_contract)
    assert code == 3
    assert "line 2" in said
    assert audit(capsys, "--file", path)[0] == 3


def test_a_key_that_is_not_the_brokers_is_said_to_be_the_wrong_key(
    ward: Ward, audited: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pin, path, _ = audited
    contract, key = ward.hospitals.contract, ward.folder / "spki.txt"
    right, other = (contract.hospital(name).broker_spki for name in (SITE, OTHER))
    for text in (right, f"  {SITE}: broker_spki: {right}\n", f'broker_spki: "{right}"\n'):
        key.write_text(str(text))
        assert audit(capsys, "--file", path, "--spki", key)[0] == 0
    both = f"broker_spki: {right}\nbroker_spki: {other}\n"
    for text, wanted in ((other, 1), (pin, 3), (f"broker.spki: {pin}\n", 3)):
        key.write_text(str(text))
        code, said = audit(capsys, "--file", path, "--spki", key)
        assert code == wanted
        assert "not broker.spki of the site policy, which is the TLS key" in said
    key.write_text(both)
    code, said = audit(capsys, "--file", path, "--spki", key)
    assert code == 3
    assert "names 2 keys" in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["receipts", "receipt", "signatures", "keyid"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | JSON.map(lambda tree: json.dumps(tree).encode()), st.binary(max_size=80))
def test_nothing_in_an_auditors_files_is_an_internal_error(tmp_path: Path, text: bytes, other: bytes) -> None:
    path, key = tmp_path / "receipts", tmp_path / "spki"
    path.write_bytes(text)
    key.write_text(signing.encode_spki(Ed25519PrivateKey.generate().public_key()))
    words = ["broker", "receipts", "--file", str(path), "--leases", str(path), "--spki"]
    assert main([*words, str(key)]) in (0, 1, 3)
    key.write_bytes(other)
    assert main([*words, str(key)]) == 3


def test_a_forgotten_vault_opens_for_nobody_and_its_leases_end(ward: Ward, cordon: Command) -> None:
    pin = cordon("init", "--tls", "b")[1]["spki"]
    add(cordon, ward)
    vault = ("--tenant", SITE, "--vault", ward.stamp.vault)
    with ward.serving() as served:
        client, process = served.client(pin), ward.process()
        lease = signing.unverified_body(ward.release(client, process).lease)["lease"]
        assert [each["vault"] for each in cordon("status")[1]["tenants"][0]["vaults"]] == [ward.stamp.vault]
        code, said = cordon("forget", *vault)
        assert (code, said["new"], said["revoked"]) == (0, True, [lease])
        assert client.lease_state(lease).state == "revoked"
        with pytest.raises(Refused, match="unknown_vault"):
            ward.release(client, ward.process())
        code, said = cordon("forget", *vault)
        assert (code, said["new"], said["revoked"]) == (0, False, [])
        mine = cordon("status")[1]["tenants"][0]
        assert (mine["vaults"], mine["revocations"]) == ([], [{"kind": "lease", "value": lease}])
        code, said = cordon("forget", "--tenant", SITE, "--vault", "0b" * 16)
        assert code == 3
        assert "no key of vault" in said


def test_a_job_that_was_never_seen_is_revoked_and_said_to_be_unseen(ward: Ward, cordon: Command) -> None:
    code, said = cordon("revoke", "--tenant", SITE, "--job", "typo")
    assert (code, said["new"], said["seen"]) == (0, True, False)
    assert cordon("status")[1]["tenants"][0]["revocations"] == [{"kind": "job", "value": "typo"}]


def test_a_policy_that_still_holds_zeros_is_said_at_the_start(ward: Ward, cordon: Command) -> None:
    cordon("init", "--tls", "b")
    path = ward.folder / "policy.yml"
    tree = yaml.safe_load(path.read_text())
    with ward.serving() as served:
        pass
    assert "warning" not in served.log.read_text()
    path.write_text(yaml.safe_dump({**tree, "software": {**tree["software"], "measurement": ["0" * 64]}}))
    with ward.serving() as served:
        pass
    assert f"warning: tenant={SITE} " in served.log.read_text()
    assert "software.measurement allows zeros only" in served.log.read_text()


def test_backup_and_restore(ward: Ward, cordon: Command) -> None:
    pin = cordon("init", "--tls", "b")[1]["spki"]
    add(cordon, ward)
    safe, head = ward.folder / "safe", ward.folder / "head.json"
    with ward.serving() as served:
        assert cordon("backup", "--out", str(safe))[0] == 0
        assert cordon("backup", "--out", str(safe))[0] == 3
        release = ward.release(served.client(pin), ward.process())
        head.write_text(json.dumps(release.ledger))
        again = ("restore", "--tenant", SITE, "--from", str(safe), "--lost-epsilon", "4.1", "--last-seen", str(head))
        code, said = cordon(*again)
        assert code == 3, "the broker runs"
    code, said = cordon(*again)
    assert code == 3
    assert "move it away" in said
    for path in ward.folder.glob(f"state/{SITE}.sqlite*"):
        path.unlink()
    code, said = cordon(*("restore", "--tenant", SITE, "--from", str(ward.folder / "none"), "--lost-epsilon", "0"))
    assert code == 3
    assert "no backup there" in said
    code, said = cordon(*again)
    assert code == 0
    assert said["ledger"]["seq"] > signing.unverified_body(release.ledger)["seq"]
    mine = cordon("status")[1]["tenants"][0]
    assert mine["releases"] >= 1
    assert mine["epsilon"] == pytest.approx(4.1)


def test_a_head_that_the_broker_did_not_sign_is_not_taken(ward: Ward, cordon: Command) -> None:
    head = ward.folder / "head.json"
    for text, code in (("{", 3), ("{}", 1)):
        head.write_text(text)
        words = ("restore", "--tenant", SITE, "--from", ".", "--lost-epsilon", "0", "--last-seen", str(head))
        assert cordon(*words)[0] == code


def test_all_that_is_wrong_is_said_at_once(ward: Ward, cordon: Command) -> None:
    (ward.folder / "ca.pem").write_text("no certificate")
    tenants = [{**ward.tenant(SITE), "study_digest": "0" * 64}, {**ward.tenant(OTHER), "attestation": "none.yml"}]
    ward.write(tenants=tenants)
    code, said = cordon("serve")
    assert code == 3
    for part in (
        "tls.crt",
        f"tenant {SITE}: ",
        "tenant pins 0000",
        "put its digest into study_digest",
        f"tenant {OTHER}: ",
        "none.yml",
    ):
        assert part in said
    assert "Traceback" not in said


def test_a_wrong_passphrase_stops_every_command(ward: Ward, cordon: Command) -> None:
    cordon("init", "--tls", "b")
    (ward.folder / "passphrase").write_bytes(b"another passphrase of some length")
    for words in (("serve",), ("status",), ("init",), ("backup", "--out", str(ward.folder / "b"))):
        code, said = cordon(*words)
        assert code == 3
        assert "another passphrase of" not in said


def test_two_tenants_of_one_site_cannot_be_told_apart(ward: Ward, cordon: Command) -> None:
    """The same hospital in another study, with the same mTLS key."""
    tree = yaml.safe_load((ward.folder / "study.yml").read_text())
    keys = [Ed25519PrivateKey.generate() for _ in tree["roster"]]
    for member, key in zip(tree["roster"], keys, strict=True):
        del member["broker_spki"]
        member["policy_spki"] = signing.encode_spki(key.public_key())
    path = ward.folder / "another.yml"
    path.write_text(yaml.safe_dump(tree | {"study": "another"}))
    for key in keys:
        documents.sign_file(path, study.SCHEMA, key)
    digest = study.load_signed(path, datetime.now(UTC)).digest
    twin = {**ward.tenant(SITE), "name": "twin", "study": "another.yml", "study_digest": digest}
    ward.write(tenants=[ward.tenant(SITE), twin])
    assert cordon("init", "--tls", "b")[1]["tenants"]["twin"]["made"]
    code, said = cordon("serve")
    assert code == 3
    assert f"tenants {SITE} and twin have the same mTLS key" in said


def test_a_port_in_use_and_an_interrupt(ward: Ward, cordon: Command) -> None:
    cordon("init", "--tls", "b")
    with ward.serving() as served:
        ward.write(listen={"host": "127.0.0.1", "port": int(served.url.rsplit(":", 1)[1])})
        code, said = cordon("serve")
        assert code == 3
        assert "in use" in said
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0


def test_a_tls_key_of_another_certificate(ward: Ward, cordon: Command) -> None:
    cordon("init", "--tls", "b")
    (ward.folder / "tls.key").rename(ward.folder / "first.key")
    (ward.folder / "tls.crt").unlink()
    cordon("init", "--tls", "b")
    (ward.folder / "first.key").replace(ward.folder / "tls.key")
    code, said = cordon("serve")
    assert code == 3
    assert "not that of the certificate" in said


def test_a_clock_that_was_ahead_is_accepted_when_asked(ward: Ward, cordon: Command) -> None:
    broker = ward.hospitals.open()
    code, said = cordon("accept-clock", "--tenant", SITE)
    assert (code, said["tenant"], said["new"]) == (0, SITE, False)
    assert "CLOCK" not in [row["kind"] for _, row, _ in broker.ledger_rows()], "nothing was wrong"
    broker.challenge(ChallengeRequest(v=1, job=JOB), broker.site_spki, datetime.now(UTC) + timedelta(days=1))
    assert cordon("accept-clock", "--tenant", SITE)[1]["new"]
    assert broker.ledger_rows()[-1][1]["kind"] == "CLOCK"


@pytest.mark.parametrize(
    "words",
    [
        ["broker"],
        ["broker", "nothing"],
        ["broker", "revoke", "--config", "f", "--tenant", "t"],
        ["broker", "revoke", "--config", "f", "--tenant", "t", "--job", "a", "--lease", "b"],
        ["broker", "status"],
        ["broker", "receipts"],
        ["broker", "receipts", "--file", "f"],
        ["broker", "receipts", "--file", "f", "--config", "c", "--spki", "s"],
        ["broker", "--config", "/no/such/file"],
    ],
)
def test_usage(words: list[str]) -> None:
    try:
        assert main(words) == 3
    except SystemExit as end:
        assert end.code == 3


@pytest.mark.parametrize(
    "name", ["", "serve", "init", "add", "forget", "revoke", "status", "receipts", "backup", "restore", "accept-clock"]
)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["broker", *filter(None, [name]), "--help"])
    assert (
        f"cordon broker {name}".rstrip() + " "
        in capsys.readouterr().out.split("example:\n")[-1].split("examples:\n")[-1]
    )


def test_a_second_signal_ends_it_at_once(ward: Ward, cordon: Command) -> None:
    """While a request is under way, whose body does not come."""
    pin = cordon("init", "--tls", "b")[1]["spki"]
    ward.write(limits={"request_timeout_s": 30.0})
    with ward.serving() as served:
        client = served.client(pin)
        connection = client._connected()
        connection.putrequest("POST", "/v1/challenge")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        time.sleep(0.3)
        os.kill(served.process.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert served.process.poll() is None
        os.kill(served.process.pid, signal.SIGTERM)
        assert served.process.wait(5) == 128 + signal.SIGTERM
        client.close()
