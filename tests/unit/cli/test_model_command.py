"""cordon model: keys of the release right, what a sealed model is, a share, the model."""

import hashlib
import json
import stat

import msgspec
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save

from cordon import documents, release_key, sealed_model, signing, study
from cordon.cli import main
from cordon.errors import PolicyRefused
from cordon.study import ReleaseRight

NAMES = ("anna", "boris", "carla")
MODEL = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b\x1b[2J": np.zeros(2, np.float32)})


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys of three holders and of a stranger; a study contract that names the three, signed; its parsed form."""
    folder = tmp_path_factory.mktemp("holders")
    for name in (*NAMES, "stranger"):
        assert main(["model", "keygen", "--out", str(folder / f"{name}.key")]) == 0
    signer = signing.load_private_key(_ed25519(folder))
    spki = signing.encode_spki(signer.public_key())
    hospital = {"name": "hospital-a", "policy_spki": spki, "steward_spki": spki}
    tree = {
        "version": study.SCHEMA,
        "study": "wdbc",
        "profile": "poc",
        "coordinator": {"name": "server", "mtls_spki": spki + "A"},
        "roster": [{**hospital, "mtls_spki": spki}],
        "contracts": [],
        "models": [],
        "jobs": ["oncology"],
        "time_grid_s": 0,
        "evaluation": {"kind": "none"},
        "release": {"holders": {name: (folder / f"{name}.pub").read_text().strip() for name in NAMES}, "persons": 2},
    }
    path = folder / "study.yml"
    path.write_text(yaml.safe_dump(tree))
    documents.sign_file(path, study.SCHEMA, signer)
    return folder


def _ed25519(folder):
    main(["keygen", "--out", str(folder / "policy.key")])
    return (folder / "policy.key").read_bytes()


@pytest.fixture
def here(keys, tmp_path):
    """A folder with ``one.sealed`` and ``two.sealed``: the model for one person, and for two as the contract wants."""
    agreed = documents.load(keys / "study.yml", study.StudyContract)
    subject = sealed_model.Subject(
        study=agreed.digest,
        study_name="wdbc",
        job="oncology",
        job_id="1-2",
        job_digest="b" * 64,
        version=7,
        layout_digest="c" * 64,
    )
    for persons, name in ((1, "one"), (2, "two")):
        right = ReleaseRight(holders=agreed.release.holders, persons=persons)
        (tmp_path / f"{name}.sealed").write_bytes(sealed_model.seal(MODEL, subject, right))
    return tmp_path


@pytest.fixture
def model(keys, here, capsys):
    """Runs ``cordon model WORDS``; @x is a file with the holders' keys, =x one of this test. (code, out, err)."""

    def run(words):
        named = [str(keys / each[1:]) if each[0] == "@" else each for each in words.split()]
        code = main(["model", *(str(here / each[1:]) if each[0] == "=" else each for each in named)])
        return code, *capsys.readouterr()

    capsys.readouterr()
    return run


def test_keygen_makes_a_private_file_and_what_the_contract_names(model, here):
    code, out, _ = model("keygen --out =x.key")
    assert code == 0
    assert stat.S_IMODE((here / "x.key").stat().st_mode) == 0o600
    public = release_key.decode_public((here / "x.pub").read_bytes())
    assert release_key.decode_private((here / "x.key").read_bytes()).public_bytes == public
    assert release_key.fingerprint(public) in out
    secret = (here / "x.key").read_text().splitlines()[1]
    assert secret not in out
    ReleaseRight(holders={"x": public})
    assert yaml.safe_load((here / "x.pub").read_text()) == (here / "x.pub").read_text().strip()


def test_keygen_overwrites_neither_half(model, here):
    assert model("keygen --out =x.key")[0] == 0
    before = (here / "x.key").read_bytes()
    assert model("keygen --out =x.key --pub =y.pub")[0] == 3
    assert model("keygen --out =y.key --pub =x.pub")[0] == 3
    assert model("keygen --out =y.pub")[0] == 3
    assert (here / "x.key").read_bytes() == before
    assert not (here / "y.key").exists()


def test_keygen_as_json(model, here):
    code, out, _ = model("keygen --out =x.key --pub =other --json")
    said = json.loads(out)
    assert code == 0
    assert said["fingerprint"] == release_key.fingerprint(release_key.decode_public((here / "other").read_bytes()))


def test_info_needs_no_key_and_says_who_can_open_it(model, keys):
    code, out, _ = model("info =two.sealed")
    assert code == 0
    assert "version 7 of job oncology (1-2), study wdbc" in out
    assert "any two together of:" in out and "not compared with a study contract" in out
    for name in NAMES:
        assert release_key.fingerprint(release_key.decode_public((keys / f"{name}.pub").read_bytes())) in out
    assert "any one of:" in model("info =one.sealed")[1]


def test_info_as_json(model):
    code, out, _ = model("info =two.sealed --study @study.yml --json")
    said = json.loads(out)
    assert code == 0
    assert said["sha256"] == hashlib.sha256(MODEL).hexdigest()
    assert (said["version"], said["persons"], sorted(said["holders"])) == (7, 2, list(NAMES))
    assert said["study_checked"] is True
    assert "stanzas" not in said


def test_the_contract_is_compared_where_it_is_given(model, here):
    code, out, _ = model("info =two.sealed --study @study.yml")
    assert code == 0 and "are those of the signed contract" in out
    code, _, err = model("info =one.sealed --study @study.yml")  # one person, where the contract wants two
    assert code == 4 and "other_persons" in err
    code, _, err = model("open =one.sealed --study @study.yml --key @anna.key --out =m")
    assert code == 4 and "other_persons" in err and not (here / "m").exists()
    code, _, err = model("share =one.sealed --study @study.yml --key @anna.key --for @boris.pub --out =s")
    assert code == 4 and not (here / "s").exists()


def test_a_contract_that_nobody_signed_is_none(model, keys, here):
    (here / "study.yml").write_bytes((keys / "study.yml").read_bytes())
    code, _, err = model("info =two.sealed --study =study.yml")
    assert code == 1 and "not signed" in err


def test_one_person_opens_a_one_person_model(model, here):
    code, out, _ = model("open =one.sealed --key @boris.key --out =m.safetensors")
    assert code == 0
    assert (here / "m.safetensors").read_bytes() == MODEL
    assert stat.S_IMODE((here / "m.safetensors").stat().st_mode) == 0o600
    assert f"SHA-256 {hashlib.sha256(MODEL).hexdigest()}" in out
    assert "w: F32 (2, 3)" in out
    assert "\x1b" not in out  # a tensor's name is the sealer's word
    assert set(load_file(here / "m.safetensors")) == {"w", "b\x1b[2J"}
    assert not (here / "m.safetensors.part").exists()


def test_two_persons_at_two_machines(model, here):
    code, out, _ = model("share =two.sealed --key @anna.key --for @carla.pub --out =anna.share --study @study.yml")
    assert code == 0
    assert "version 7 of job oncology" in out and "the share of anna for carla" in out
    code, out, _ = model("open =two.sealed --key @carla.key --share =anna.share --out =m --study @study.yml --json")
    assert code == 0
    said = json.loads(out)
    assert said["tensors"]["w"] == ["F32", [2, 3]] and said["study_checked"] is True
    assert (here / "m").read_bytes() == MODEL


def test_two_persons_at_one_machine(model, here):
    assert model("open =two.sealed --key @anna.key --key @boris.key --out =m")[0] == 0
    assert (here / "m").read_bytes() == MODEL


def test_one_person_alone_is_refused_and_told_whom_to_ask(model, here):
    code, _, err = model("open =two.sealed --key @boris.key --out =m")
    assert code == 4
    assert "two_persons" in err and "ask one of anna, carla" in err and "cordon model share" in err
    assert sorted(each.name for each in here.iterdir()) == ["one.sealed", "two.sealed"]


def test_a_stranger_is_refused(model, here):
    code, _, err = model("open =one.sealed --key @stranger.key --out =m")
    assert code == 4 and "not_a_holder" in err and not (here / "m").exists()
    code, _, err = model("share =two.sealed --key @anna.key --for @stranger.pub --out =s")
    assert code == 4 and "not_a_holder" in err and not (here / "s").exists()


def test_nothing_is_overwritten(model, here):
    (here / "m").write_text("mine")
    code, _, err = model("open =one.sealed --key @anna.key --out =m")
    assert code == 3 and "exists already" in err
    code, _, err = model("share =two.sealed --key @anna.key --for @boris.pub --out =m")
    assert code == 3
    assert (here / "m").read_text() == "mine"
    (here / "n.part").write_text("theirs")
    code, _, err = model("open =one.sealed --key @anna.key --out =n")
    assert code == 3 and "n.part" in err
    assert (here / "n.part").read_text() == "theirs"


def test_a_changed_file_leaves_no_model(model, here):
    data = (here / "one.sealed").read_bytes()
    (here / "one.sealed").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, _, err = model("open =one.sealed --key @anna.key --out =m")
    assert code == 1 and "does not open" in err
    assert sorted(each.name for each in here.iterdir()) == ["one.sealed", "two.sealed"]


def test_what_is_no_safetensors_is_not_left_there(model, keys, here):
    right = ReleaseRight(holders={"anna": release_key.decode_public((keys / "anna.pub").read_bytes())})
    subject = msgspec.convert(
        {each: getattr(_header(here), each) for each in sealed_model.Subject.__struct_fields__}, sealed_model.Subject
    )
    (here / "text.sealed").write_bytes(sealed_model.seal(b"no model at all", subject, right))
    code, _, err = model("open =text.sealed --key @anna.key --out =m")
    assert code == 1 and "something else than safetensors" in err
    assert not (here / "m").exists() and not (here / "m.part").exists()


def _header(here):
    with open(here / "one.sealed", "rb") as file:
        return sealed_model.read(file).header


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("info @anna.pub", "anna.pub: not a sealed model"),
        ("info =none", "none: cannot be read"),
        ("info .", "not a regular file"),
        ("open =one.sealed --key @anna.pub --out =m", "open to group or others"),
        ("open =one.sealed --key =one.sealed --out =m", "one.sealed"),
        ("open =one.sealed --key =none --out =m", "none"),
        ("open =two.sealed --key @anna.key --share @boris.pub --out =m", "boris.pub: share file"),
        ("open =one.sealed --key @anna.key --out =no/m", "cannot be written"),
        ("share =two.sealed --key @anna.key --for @boris.key --out =s", "boris.key: this is a private release key"),
        ("open =one.sealed --out =m", "--key"),
    ],
)
def test_unreadable_input_is_named(model, here, words, said):
    (here / "one.sealed").chmod(0o600)
    try:
        code, _, err = model(words)
    except SystemExit as end:
        code, err = end.code, said
    assert code == 3
    assert said in err


def test_a_key_that_others_can_read_is_refused(model, keys, here):
    (here / "open.key").write_bytes((keys / "anna.key").read_bytes())
    (here / "open.key").chmod(0o644)
    code, _, err = model("open =one.sealed --key =open.key --out =m")
    assert code == 3 and "chmod 600" in err


def test_a_share_for_one_of_two_keys_that_are_both_here_is_not_taken_for_the_others(model, here):
    assert model("share =two.sealed --key @boris.key --for @carla.pub --out =s")[0] == 0
    assert model("open =two.sealed --key @anna.key --key @carla.key --share =s --out =m")[0] == 0
    assert (here / "m").read_bytes() == MODEL


def test_the_header_that_was_compared_with_the_contract_is_the_one_that_opens(model, here, monkeypatch):
    """The attack: a file for one person is laid over the one for two between the comparison and the opening."""
    load = study.load_signed

    def swap(*args):
        (here / "two.sealed").write_bytes((here / "one.sealed").read_bytes())
        return load(*args)

    monkeypatch.setattr(study, "load_signed", swap)
    code, out, _ = model("open =two.sealed --study @study.yml --key @anna.key --out =m")
    assert code != 0 and out == "" and not (here / "m").exists()


def test_a_study_by_another_name_is_not_the_contracts(keys, here):
    with open(here / "two.sealed", "rb") as file:
        header = sealed_model.read(file).header
    with pytest.raises(PolicyRefused, match="other_study"):
        named = msgspec.structs.replace(header, study_name="elsewhere")
        sealed_model.check_study(named, documents.load(keys / "study.yml", study.StudyContract))


def test_keygen_leaves_no_half_where_the_other_cannot_be_written(model, here):
    before = sorted(each.name for each in here.iterdir())
    assert model("keygen --out =x.key --pub =no/x.pub")[0] == 3
    assert model("keygen --out =no/x.key --pub =x.pub")[0] == 3
    code, _, err = model("keygen --out .")
    assert code == 3 and "not the name of a file" in err
    assert sorted(each.name for each in here.iterdir()) == before
