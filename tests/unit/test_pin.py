"""The pin: what a hospital remembers of its study outside its kit."""

from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cordon import documents, signing
from cordon.errors import ConfigError, SignatureError
from cordon.site import pin
from cordon.study import StudyContract

OWN, OTHER = Ed25519PrivateKey.generate().public_key(), Ed25519PrivateKey.generate().public_key()


def contract(profile="production", own=OWN, study="trial"):
    def member(name, policy):
        spki = signing.encode_spki(Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode()).public_key())
        key = signing.encode_spki(policy)
        return {"name": name, "mtls_spki": spki, "policy_spki": key, "steward_spki": key}

    coordinator = member("server", OTHER)
    tree = {
        "version": "cordon/study/v1",
        "study": study,
        "profile": profile,
        "coordinator": {"name": "server", "mtls_spki": coordinator["mtls_spki"]},
        "roster": [member("hospital-a", own), member("hospital-b", OTHER)],
        "contracts": [],
        "models": [],
        "jobs": [],
        "time_grid_s": 60.0,
        "evaluation": {"kind": "none"},
    }
    return documents.parse(yaml.safe_dump(tree).encode(), StudyContract, "study.yml")


POLICIES = {"site": "1" * 64, "attestation": "2" * 64}


def write(path, agreed, site="hospital-a", key=OWN, **changes):
    path.write_text(yaml.safe_dump({**documents.body_of(pin.make(agreed, site, key, POLICIES)), **changes}))
    return path


@pytest.fixture
def start(tmp_path):
    """check_start as at a hospital whose fixed path is in a temporary folder; (the call, that path)."""
    kit = tmp_path / "kit"
    kit.mkdir()
    default = tmp_path / "pin.yml"

    def call(agreed, site="hospital-a", **environ):
        pin.check_start(kit, agreed, site, environ, default, POLICIES)

    return call, default


def test_a_pin_of_this_study_lets_it_start(start):
    call, default = start
    write(default, contract())
    call(contract())


@pytest.mark.parametrize(
    ("agreed", "said"),
    [
        (contract(study="another"), "wants study contract"),
        (contract(own=OTHER), "wants study contract .* wants policy key"),
        (contract(profile="poc"), "wants study contract"),
    ],
    ids=["another study", "another policy key", "the same as POC"],
)
def test_anything_else_does_not(start, agreed, said):
    call, default = start
    write(default, contract())
    with pytest.raises(SignatureError, match=said):
        call(agreed)


def test_a_pin_of_the_right_study_and_another_key(start):
    call, default = start
    write(default, contract(), policy_spki=signing.encode_spki(OTHER))
    with pytest.raises(SignatureError, match=r"pin\.yml: wants policy key .*, the contract names"):
        call(contract())


def test_a_pin_of_another_site(start):
    call, default = start
    write(default, contract(), site="hospital-b", key=OTHER)
    with pytest.raises(SignatureError, match="is for hospital-b, this kit is of hospital-a; wants policy key"):
        call(contract())


def test_without_a_pin_only_a_poc_study_starts(start):
    call, default = start
    call(contract(profile="poc"))
    with pytest.raises(ConfigError, match=f"{default}: missing; a production kit .* cordon pin --study"):
        call(contract())


def test_a_production_pin_fixes_both_policies(start):
    call, default = start
    for policies in ({}, {"site": "1" * 64}, {"attestation": "2" * 64}):
        write(default, contract(), policies=policies)
        with pytest.raises(ConfigError, match="wants a pin that fixes site and attestation policy"):
            call(contract())
    write(default, contract(profile="poc"), policies={})
    call(contract(profile="poc"))


def test_the_variable_cannot_replace_a_pin_that_is_there(start, tmp_path):
    """Whoever starts a measured image sets its variables."""
    call, default = start
    write(default, contract(study="another"))
    other = write(tmp_path / "other.yml", contract())
    with pytest.raises(SignatureError, match="wants study contract"):
        call(contract(), CORDON_PIN=str(other))


def test_the_variable_names_another_file_outside_the_kit(start, tmp_path):
    call, _ = start
    other = write(tmp_path / "other.yml", contract())
    call(contract(), CORDON_PIN=str(other))
    for profile in ("production", "poc"):
        with pytest.raises(ConfigError, match="no such file; CORDON_PIN names it"):
            call(contract(profile), CORDON_PIN=str(tmp_path / "none.yml"))
    for relative in ("", "other.yml", "../other.yml"):
        with pytest.raises(ConfigError, match="want an absolute path"):
            call(contract(), CORDON_PIN=relative)


def test_a_pin_inside_the_kit_is_none(start, tmp_path):
    call, default = start
    inside = write(tmp_path / "kit" / "pin.yml", contract())
    linked, folder = tmp_path / "link.yml", tmp_path / "folder"
    linked.symlink_to(inside)
    folder.symlink_to(tmp_path / "kit")
    for path in (inside, linked, folder / "pin.yml", tmp_path / "other" / ".." / "kit" / "pin.yml"):
        if ".." in path.parts:
            (tmp_path / "other").mkdir()
        with pytest.raises(ConfigError, match="inside the kit"):
            call(contract(), CORDON_PIN=str(path))
    default.symlink_to(inside)
    with pytest.raises(ConfigError, match="inside the kit"):
        call(contract())


def test_a_broken_pin_is_not_an_absent_one(start, tmp_path):
    """Also for a POC study, which needs no pin."""
    call, default = start
    default.symlink_to(tmp_path / "gone.yml")
    with pytest.raises(ConfigError, match="cannot be read"):
        call(contract(profile="poc"))
    default.unlink()
    default.mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        call(contract(profile="poc"))
    default.rmdir()
    for text in ("", "[1", "\xff", "version: cordon/pin/v2\n", "version: cordon/pin/v1\nsite: hospital-a\n"):
        default.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"pin\.yml"):
            call(contract(profile="poc"))
    write(default, contract(profile="poc"), note="more than the schema knows")
    with pytest.raises(ConfigError, match="unknown field"):
        call(contract(profile="poc"))


def test_a_pin_whose_key_is_no_key(start):
    call, default = start
    write(default, contract(), policy_spki="A" * 60)
    with pytest.raises(ConfigError, match="not a"):
        call(contract())


def test_no_pin_is_made_for_a_stranger_or_another_key():
    with pytest.raises(ConfigError, match="hospital-z is not a hospital"):
        pin.make(contract(), "hospital-z", OWN)
    with pytest.raises(SignatureError, match="wants policy key"):
        pin.make(contract(), "hospital-a", OTHER)


def test_the_fixed_path_is_outside_any_kit():
    assert Path("/etc/cordon/pin.yml") == pin.PATH
    assert pin.VARIABLE == "CORDON_PIN"


def test_an_older_policy_that_was_signed_once_does_not_come_back(tmp_path):
    kit, default = tmp_path / "kit", tmp_path / "pin.yml"
    kit.mkdir()
    newest = {"site": "1" * 64, "attestation": "2" * 64}
    default.write_text(yaml.safe_dump(documents.body_of(pin.make(contract(), "hospital-a", OWN, newest))))
    pin.check_start(kit, contract(), "hospital-a", {}, default, newest)
    for kind in newest:
        for there in ({**newest, kind: "3" * 64}, {key: value for key, value in newest.items() if key != kind}, None):
            with pytest.raises(SignatureError, match=f"wants {kind} policy"):
                pin.check_start(kit, contract(), "hospital-a", {}, default, there)
