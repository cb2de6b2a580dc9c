"""Whoever has the coordinator's disk, or stands between two holders of the release right, wants the model."""

import hashlib
import io
import json
import os

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from cordon import release_key, sealed_model, sealing, signing, stream
from cordon.documents import body_of
from cordon.errors import ConfigError, PolicyRefused, SealError
from cordon.flare import poc_documents
from cordon.flare.kit import load_kit
from cordon.flare.persistor import MODEL_FILE
from cordon.sealed_model import Share, Subject, check_study, make_share, open_file, open_model, read, seal
from cordon.sealing import KemKey
from cordon.study import ReleaseRight
from fakes.federation_kits import SERVER
from fakes.in_process import _now

KEYS = {name: KemKey.generate() for name in ("anna", "boris", "carla")}
COORDINATOR = KemKey.generate()
MODEL = save({"w": np.random.default_rng(1).normal(size=(64,)).astype(np.float32)})
SUBJECT = Subject(
    study="a" * 64,
    study_name="study",
    job="oncology",
    job_id="1",
    job_digest="b" * 64,
    version=3,
    layout_digest="c" * 64,
)


def right(persons, **others):
    public = {name: key.public_bytes for name, key in (KEYS | others).items()}
    return ReleaseRight(holders=public, persons=persons)


def opened(data, *names, shares=()):
    _, pieces = open_model(io.BytesIO(data), [KEYS[name] for name in names], shares)
    return b"".join(pieces)


def share(data, sender, recipient):
    return make_share(read(io.BytesIO(data)), KEYS[sender], KEYS[recipient].public_bytes)


def parts(data):
    """(header as a tree, body)."""
    end = 16 + int.from_bytes(data[12:16], "big")
    return json.loads(data[16:end]), data[end:]


def rebuilt(tree, body):
    header = signing.canonical(tree)
    return data_of(header) + body


def data_of(header):
    return sealed_model.MAGIC + (1).to_bytes(4, "big") + len(header).to_bytes(4, "big") + header


# -- the coordinator's disk -------------------------------------------------------------------------------------------


def windows(model):
    """Every 16 bytes of the tensors, from each number on."""
    found = set()
    for array in load(model).values():
        data = array.tobytes()
        found |= {data[at : at + 16] for at in range(0, len(data) - 15, 4) if len(set(data[at : at + 16])) > 8}
    return found


def files_with(folder, wanted):
    """Files below ``folder`` that hold any of the 16-byte ``wanted``."""
    hits = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if any(data[at : at + 16] in wanted for at in range(len(data) - 15)):
                hits.append(path)
    return hits


def test_who_takes_the_coordinators_disk_after_a_job_finds_no_model_in_the_clear(federate, kits, monkeypatch):
    models, written = [], []
    honest, publish = sealed_model.seal, os.fsync

    def remember(model, subject, release):
        models.append(model)
        return honest(model, subject, release)

    def look(descriptor):  # what a file holds at the moment that it is on the disk, before it has its name
        written.append(open(f"/proc/self/fd/{descriptor}", "rb").read())  # noqa: SIM115
        publish(descriptor)

    monkeypatch.setattr(sealed_model, "seal", remember)
    monkeypatch.setattr("cordon.flare.persistor.os.fsync", look)
    federation = federate()
    events = federation.run()
    versions = [event for event in events if event["kind"] == "version"]
    assert len(versions) == len(models) >= 3
    secret = set().union(*map(windows, models))
    assert len(secret) > 20 * len(models)
    assert files_with(kits / SERVER, secret) == []
    assert not [data for data in written if any(data[at : at + 16] in secret for at in range(len(data) - 15))]
    (kits / SERVER / "control").write_bytes(b"x" + models[-1])  # that the search finds what there is
    assert files_with(kits / SERVER, secret) == [kits / SERVER / "control"]


def test_the_holder_of_the_release_right_opens_what_the_job_left_and_its_hash_is_the_reported_one(federate, kits):
    federation = federate()
    last = [event for event in federation.run() if event["kind"] == "version"][-1]
    path = federation.run_dir / MODEL_FILE
    with open(path, "rb") as file:
        study = load_kit(kits / SERVER, _now()).study
        check_study(read(file).header, study)
    header, model = open_file(path, [poc_documents.release_key(kits / "state")])
    assert header.sha256 == last["sha256"] == hashlib.sha256(model).hexdigest()
    assert (header.version, header.study) == (last["version"], study.digest)
    assert sum(array.size for array in load(model).values()) > 10


def test_a_study_that_gives_nobody_the_release_right_trains_no_model(federate, kits, monkeypatch):
    from cordon.flare import controllers

    honest = controllers.load_kit

    def without(root, now):
        kit = honest(root, now)
        return kit.__class__(**{**vars(kit), "study": msgspec.structs.replace(kit.study, release=None)})

    monkeypatch.setattr(controllers, "load_kit", without)
    federation = federate()
    with pytest.raises(ConfigError, match="gives nobody the release right"):
        federation.run()
    assert not (federation.run_dir / MODEL_FILE).exists()


# -- who changes the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"version": 4}, {"job": "other"}, {"study": "d" * 64}, {"sha256": "e" * 64}, {"layout_digest": "f" * 64}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("names", [("anna",), ("anna", "boris")])
def test_who_changes_what_the_header_says_of_the_model_makes_it_open_to_nobody(change, names):
    tree, body = parts(seal(MODEL, SUBJECT, right(len(names))))
    with pytest.raises(SealError):
        opened(rebuilt(tree | change, body), *names)


def test_who_takes_a_stanza_from_another_file_of_the_same_model_makes_it_open_to_nobody():
    for persons, names in ((1, ["anna"]), (2, ["anna", "boris"])):
        (one, body), (other, _) = (parts(seal(MODEL, SUBJECT, right(persons))) for _ in range(2))
        with pytest.raises(SealError):
            opened(rebuilt(one | {"stanzas": [other["stanzas"][0], *one["stanzas"][1:]]}, body), *names)


def test_who_swaps_two_shares_of_a_stanza_makes_it_open_to_nobody():
    tree, body = parts(seal(MODEL, SUBJECT, right(2)))
    tree["stanzas"][0]["shares"].reverse()
    with pytest.raises(SealError):
        opened(rebuilt(tree, body), "anna", "boris")


def test_a_holder_who_breaks_anothers_share_is_noticed_by_all():
    """The body's key follows from the whole header: no holder can be shut out of a file that still opens to others."""
    tree, body = parts(seal(MODEL, SUBJECT, right(1)))
    tree["stanzas"][2]["shares"] = tree["stanzas"][1]["shares"]
    with pytest.raises(SealError):
        opened(rebuilt(tree, body), "anna")


LONG = bytes(range(256)) * 12 * 1024  # three chunks
CHUNK = stream.CHUNK_BYTES + stream.TAG_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[CHUNK : 2 * CHUNK] + body[:CHUNK] + body[2 * CHUNK :],
        lambda body: body[:CHUNK] + body[2 * CHUNK :],
        lambda body: body[:CHUNK],
        lambda body: body[:-1],
        lambda body: b"",
        lambda body: body + body[-100:],
    ],
    ids=["swapped", "one left out", "cut at a chunk", "cut", "none", "added"],
)
def test_who_swaps_or_cuts_chunks_of_the_body_is_noticed(change):
    tree, body = parts(seal(LONG, SUBJECT, right(1)))
    assert len(body) == 3 * CHUNK
    with pytest.raises(SealError):
        opened(rebuilt(tree, change(body)), "carla")


def test_a_chunk_of_another_version_does_not_fit():
    (tree, body), (_, other) = (parts(seal(LONG, SUBJECT, right(1))) for _ in range(2))
    with pytest.raises(SealError):
        opened(rebuilt(tree, other[:CHUNK] + body[CHUNK:]), "anna")


# -- who wants to be alone where two are wanted -----------------------------------------------------------------------


def test_one_of_two_who_writes_persons_1_into_the_header_opens_nothing():
    tree, body = parts(seal(MODEL, SUBJECT, right(2)))
    alone = [
        {"holders": [name], "shares": [stanza["shares"][stanza["holders"].index(name)]]}
        for name in ("anna", "boris", "carla")
        for stanza in tree["stanzas"]
        if name in stanza["holders"]
    ][::2]
    forged = rebuilt(tree | {"persons": 1, "stanzas": alone}, body)
    assert read(io.BytesIO(forged)).header.persons == 1
    for name in KEYS:
        with pytest.raises(SealError):
            opened(forged, name)


def test_one_of_two_cannot_be_both_persons():
    data = seal(MODEL, SUBJECT, right(2))
    sealed = read(io.BytesIO(data))
    with pytest.raises(PolicyRefused, match="two_persons"):
        opened(data, "anna", "anna")
    with pytest.raises(PolicyRefused, match="no_share"):
        make_share(sealed, KEYS["anna"], KEYS["anna"].public_bytes)
    # A share of her own to herself, and one that says it is of boris, both made by hand.
    for sender, reason in (("anna", PolicyRefused), ("boris", SealError)):
        bound = (bytes.fromhex(sealed.id), sender.encode(), b"anna")
        key = sealing.decode_kem_key(KEYS["anna"].public_bytes)
        made = sealing.seal(os.urandom(32), key, "cordon/model-share/v1", *bound)
        forged = Share(v=1, file=sealed.id, sender=sender, recipient="anna", share=made)
        with pytest.raises(reason):
            opened(data, "anna", shares=[forged])


def test_a_share_twice_is_still_one_person():
    data = seal(MODEL, SUBJECT, right(2))
    given = share(data, "boris", "anna")
    assert opened(data, "anna", shares=[given, given]) == MODEL
    with pytest.raises(SealError, match="is for anna"):
        opened(data, "carla", shares=[given, given])


def test_a_share_for_one_file_does_not_open_another():
    """Not that of another version, nor of the same one sealed anew; nor with the other file's id written into it."""
    first, again = (seal(MODEL, SUBJECT, right(2)) for _ in range(2))
    later = seal(MODEL, msgspec.structs.replace(SUBJECT, version=4), right(2))
    given = share(first, "boris", "anna")
    for other in (again, later):
        with pytest.raises(SealError, match="for another file"):
            opened(other, "anna", shares=[given])
        renamed = msgspec.structs.replace(given, file=read(io.BytesIO(other)).id)
        with pytest.raises(SealError):
            opened(other, "anna", shares=[renamed])


def test_who_intercepts_a_share_opens_nothing_with_it():
    data = seal(MODEL, SUBJECT, right(2))
    given = share(data, "boris", "anna")
    for change in ({}, {"recipient": "carla"}):
        with pytest.raises(SealError):
            opened(data, "carla", shares=[msgspec.structs.replace(given, **change)])
    with pytest.raises(PolicyRefused, match="not_a_holder"):
        open_model(io.BytesIO(data), [COORDINATOR], [given])


def test_a_share_that_names_another_sender_does_not_open():
    data = seal(MODEL, SUBJECT, right(2))
    given = msgspec.structs.replace(share(data, "boris", "anna"), sender="carla")
    with pytest.raises(SealError):
        opened(data, "anna", shares=[given])
    with pytest.raises(PolicyRefused, match="not_a_holder"):
        opened(data, "anna", shares=[msgspec.structs.replace(given, sender="mallory")])


# -- a coordinator that seals to others -------------------------------------------------------------------------------


def test_a_coordinator_that_writes_itself_into_a_sealed_file_opens_nothing():
    tree, body = parts(seal(MODEL, SUBJECT, right(1)))
    tree["holders"]["anna"] = release_key.fingerprint(COORDINATOR.public_bytes)
    with pytest.raises(SealError):
        open_model(io.BytesIO(rebuilt(tree, body)), [COORDINATOR])


@pytest.mark.parametrize(
    ("release", "code"),
    [
        (ReleaseRight(holders={"anna": COORDINATOR.public_bytes}), "other_holders"),
        (right(1, server=COORDINATOR), "other_holders"),
        (right(1, anna=COORDINATOR), "other_holders"),
        (right(1), "other_persons"),
    ],
    ids=["alone", "beside", "under a holder's name", "one person"],
)
def test_a_file_sealed_to_others_than_the_contract_says_is_seen(kits, release, code):
    """By ``cordon model info --study``: the holders come from what all hospitals signed, not from the coordinator."""
    agreed = msgspec.structs.replace(load_kit(kits / SERVER, _now()).study, release=right(2))
    subject = msgspec.structs.replace(SUBJECT, study=agreed.digest, study_name=agreed.study)
    check_study(read(io.BytesIO(seal(MODEL, subject, right(2)))).header, agreed)
    with pytest.raises(PolicyRefused, match=code):
        check_study(read(io.BytesIO(seal(MODEL, subject, release))).header, agreed)
    with pytest.raises(PolicyRefused, match="other_study"):
        check_study(read(io.BytesIO(seal(MODEL, SUBJECT, right(2)))).header, agreed)


def test_a_sealer_cannot_make_a_file_that_opens_to_two_models():
    """Who knows the content key can write any body, and AES-GCM alone would let one body open under two keys; the
    plaintext's hash is in the header, which every share is bound to."""
    tree, _ = parts(seal(MODEL, SUBJECT, right(1)))
    sealed = read(io.BytesIO(rebuilt(tree, b"")))
    key = sealed_model._content_key(sealed.header, {"anna": KEYS["anna"]}, {})
    other = b"".join(stream.encrypt(sealed_model._body_key(key, sealed.id), io.BytesIO(b"another model")))
    with pytest.raises(SealError, match="its header says"):
        opened(rebuilt(body_of(sealed.header), other), "anna")
