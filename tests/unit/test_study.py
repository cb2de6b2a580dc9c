"""The study contract: strict, and signed by everybody in it."""

import base64
from datetime import UTC, datetime

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, study
from cordon.errors import ConfigError, SignatureError
from cordon.sealing import KEM_BYTES, KemKey
from cordon.signing import encode_spki, spki_digest

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAMES = ("hospital-a", "hospital-b", "hospital-c")
KEYS = {name: Ed25519PrivateKey.generate() for name in (*NAMES, *(f"{n}.mtls" for n in NAMES), "server")}
KEM = [base64.b64encode(KemKey.generate().public_bytes).decode() for _ in range(2)]


def _spki(name):
    return encode_spki(KEYS[name].public_key())


@pytest.fixture
def tree():
    return {
        "version": "cordon/study/v1",
        "study": "s1",
        "profile": "poc",
        "coordinator": {"name": "server", "mtls_spki": _spki("server")},
        "roster": [
            {"name": n, "mtls_spki": _spki(f"{n}.mtls"), "policy_spki": _spki(n), "steward_spki": _spki(n)}
            for n in NAMES
        ],
        "contracts": ["a" * 64],
        "models": ["FullyConnectedNet"],
        "jobs": ["oncology"],
        "time_grid_s": 1.0,
        "evaluation": {"kind": "none"},
    }


def _parse(tree):
    return documents.parse(yaml.safe_dump(tree).encode(), study.StudyContract, "study.yml")


def test_a_contract_parses_and_knows_its_members(tree):
    contract = _parse(tree)
    assert contract.weight("hospital-a") == pytest.approx(1 / 3)
    assert spki_digest(contract.hospital("hospital-b").policy_key) == spki_digest(KEYS["hospital-b"].public_key())
    with pytest.raises(ConfigError, match="mallory is not a hospital"):
        contract.hospital("mallory")


def test_declared_weights_are_used(tree):
    tree["weights"] = {"hospital-a": 2.0, "hospital-b": 1.0, "hospital-c": 1.0}
    assert _parse(tree).weight("hospital-a") == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"version": "cordon/study/v2"},
        {"extra": 1},
        {"profile": "test"},
        {"roster": []},
        {"study": "../s1"},
        {"contracts": ["a" * 63]},
        {"weights": {"hospital-a": 1.0}},
        {"weights": {"hospital-a": 1.0, "hospital-b": 1.0, "hospital-c": 0.0}},
        {"time_grid_s": -1},
        {"profile": "production", "time_grid_s": 0},
        {"evaluation": {"kind": "private"}},
        {"release": {"holders": {}}},
        {"release": {"holders": {"lead": "AAAA"}}},
        {"release": {"holders": {"lead": KEM[0]}, "persons": 2}},
        {"release": {"holders": {"lead": KEM[0], "auditor": KEM[1]}, "persons": 3}},
        {"release": {"holders": {"lead": KEM[0], "auditor": KEM[0]}}},
        {"release": {"holders": {"lead": base64.b64encode(b"\xff" * KEM_BYTES).decode()}}},
    ],
)
def test_what_does_not_fit_is_refused(tree, change):
    with pytest.raises(ConfigError, match=r"study\.yml"):
        _parse({**tree, **change})


def test_the_release_right_is_of_one_or_two_of_the_holders(tree):
    assert _parse(tree).release is None
    for persons in (1, 2):
        tree["release"] = {"holders": {"lead": KEM[0], "auditor": KEM[1]}, "persons": persons}
        assert _parse(tree).release.persons == persons


def test_a_broker_speaks_for_its_hospital_only_where_the_contract_names_it(tree):
    with pytest.raises(ConfigError, match="names no broker_spki for hospital-a"):
        _ = _parse(tree).hospital("hospital-a").broker_key
    tree["roster"][0]["broker_spki"] = _spki("server")
    assert spki_digest(_parse(tree).hospital("hospital-a").broker_key) == spki_digest(KEYS["server"].public_key())


@pytest.mark.parametrize("field", ["study", "profile", "coordinator", "roster", "contracts", "models", "time_grid_s"])
def test_no_field_may_be_left_out(tree, field):
    del tree[field]
    with pytest.raises(ConfigError, match=field):
        _parse(tree)


def test_two_members_share_neither_name_nor_key(tree):
    twice = {**tree["roster"][1], "name": "hospital-a"}
    with pytest.raises(ConfigError, match="not unique"):
        _parse({**tree, "roster": [*tree["roster"], twice]})
    shared = {**tree["roster"][1], "name": "hospital-d"}
    with pytest.raises(ConfigError, match="share an mTLS key"):
        _parse({**tree, "roster": [*tree["roster"], shared]})
    server = {**tree["roster"][1], "mtls_spki": _spki("server")}
    with pytest.raises(ConfigError, match="share an mTLS key"):
        _parse({**tree, "roster": [server]})


@pytest.fixture
def signed(tree, tmp_path):
    path = tmp_path / "study.yml"
    path.write_text("# agreed\n" + yaml.safe_dump(tree))
    for name in NAMES:
        documents.sign_file(path, study.SCHEMA, KEYS[name])
    return path


def test_all_hospitals_must_have_signed(signed):
    assert study.load_signed(signed, NOW).study == "s1"
    signature = documents.signature_path(signed)
    signature.unlink()
    with pytest.raises(SignatureError, match="not signed"):
        study.load_signed(signed, NOW)
    for name in NAMES[:2]:
        documents.sign_file(signed, study.SCHEMA, KEYS[name])
    with pytest.raises(SignatureError, match="signed by 2 trusted keys, want 3"):
        study.load_signed(signed, NOW)


def test_what_was_verified_is_what_was_parsed(signed, monkeypatch):
    """Read once: whoever swaps the file between parsing (whose keys?) and verifying gains nothing."""
    reads = []
    original = documents.read_bytes

    def counting(path, *limit):
        reads.append(path.name)
        return original(path, *limit)

    monkeypatch.setattr(documents, "read_bytes", counting)
    study.load_signed(signed, NOW)
    assert reads == ["study.yml", "study.yml.sig"]


def test_one_hospital_cannot_sign_for_two(signed, tree):
    documents.signature_path(signed).unlink()
    for _ in range(3):
        documents.sign_file(signed, study.SCHEMA, KEYS["hospital-a"])
    with pytest.raises(SignatureError, match="want 3"):
        study.load_signed(signed, NOW)


def test_any_change_breaks_the_signatures(signed):
    signed.write_text(signed.read_text().replace("time_grid_s: 1.0", "time_grid_s: 9.0"))
    with pytest.raises(SignatureError, match="changed after it was signed"):
        study.load_signed(signed, NOW)


def test_a_signature_over_another_kind_of_document_does_not_count(signed):
    documents.signature_path(signed).unlink()
    for name in NAMES:
        documents.sign_file(signed, "cordon/site/v1", KEYS[name])
    with pytest.raises(SignatureError, match="another kind"):
        study.load_signed(signed, NOW)


def test_digest_is_of_the_meaning(tree):
    assert _parse(tree).digest == _parse(dict(reversed(tree.items()))).digest
    assert _parse(tree).digest != _parse({**tree, "time_grid_s": 2.0}).digest
