"""The vault format against a second reading of its specification: only hashlib, hmac and AES-GCM, nothing of cordon."""

import hashlib
import hmac
import io
import json
import re

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordon.data.vault import Vault, seal, stamp_of

KEY, SALT, ID = bytes(range(32)), bytes(range(0x20, 0x40)), bytes(range(0x40, 0x50))
SMALL = {"a.txt": b"hello vault\n", "empty.csv": b""}
LARGE = {
    "two-chunks": bytes(at % 251 for at in range(8192)),
    "and-a-byte": bytes(at % 241 for at in range(8193)),
    "größe": b"x" * 4095,
}


def lp(part):
    return len(part).to_bytes(4, "big") + part


def hkdf(ikm, salt, info):
    """RFC 5869, one block."""
    return hmac.digest(hmac.digest(salt, ikm, "sha256"), info + b"\x01", "sha256")


def unstream(key, sealed, chunk):
    out, number = b"", 0
    while True:
        piece, sealed = sealed[: chunk + 16], sealed[chunk + 16 :]
        nonce = number.to_bytes(11, "big") + (b"\x00" if sealed else b"\x01")
        out += AESGCM(key).decrypt(nonce, piece, None)
        number += 1
        if not sealed:
            return out


def unseal(data, key):
    """(members, root) as README.md describes them, in the order of its sections."""
    assert data[0:8] == b"\x8fcordonV"
    assert data[8:12] == b"\0\0\0\x01"
    chunk = int.from_bytes(data[12:16], "big")
    bare, salt, tag = data[:72], data[40:72], data[72:104]
    domain = lp(b"cordon/vault/v1")
    assert tag == hmac.digest(hkdf(key, salt, domain + lp(b"header")), bare, "sha256")
    offset, length = int.from_bytes(data[-24:-16], "big"), int.from_bytes(data[-16:-8], "big")
    assert data[-8:] == b"Vnodroc\x8f"
    assert offset + length == len(data) - 24
    sealed_directory = data[offset : offset + length]
    directory = unstream(hkdf(key, salt, domain + lp(b"directory") + lp(bare)), sealed_directory, chunk)
    tree = json.loads(directory)
    assert directory == json.dumps(tree, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    assert tree["v"] == 1
    members, at = {}, 104
    for index, entry in enumerate(tree["members"]):
        size = entry["size"]
        end = at + size + 16 * max(1, -(-size // chunk))
        member_key = hkdf(key, salt, domain + lp(b"member") + lp(index.to_bytes(8, "big")) + lp(bare))
        members[entry["name"]] = unstream(member_key, data[at:end], chunk)
        assert len(members[entry["name"]]) == size
        at = end
    assert at == offset
    root = hashlib.sha256(lp(b"cordon/vault-root/v1") + lp(data[:104]) + lp(sealed_directory)).hexdigest()
    return members, root


def make(path, members, version=7):
    files = [(name, io.BytesIO(data)) for name, data in members.items()]
    stamp = seal(files, path, KEY, vault=ID, version=version, chunk=4096, random=lambda size: SALT[:size])
    return path.read_bytes(), stamp


@pytest.fixture(scope="module")
def printed(repo_root):
    """What README.md prints: name -> hex without its line breaks."""
    text = (repo_root / "custom" / "cordon" / "data" / "vault" / "README.md").read_text()
    blocks = re.findall(r"^vector (\S+)\n((?:    [0-9a-f]+\n)+)", text, re.M)
    return {name: re.sub(r"\s", "", block) for name, block in blocks}


@pytest.mark.parametrize("members", [SMALL, LARGE, {}], ids=["small", "large", "none"])
def test_what_cordon_seals_the_specification_opens(tmp_path, members):
    data, stamp = make(tmp_path / "v", members)
    opened, root = unseal(data, KEY)
    assert opened == members and list(opened) == list(members)
    assert (stamp.vault, stamp.version, stamp.root) == (ID.hex(), 7, root)
    assert stamp == stamp_of(tmp_path / "v")


def test_the_printed_vectors_are_what_cordon_seals(tmp_path, printed):
    data, stamp = make(tmp_path / "v", SMALL)
    assert data.hex() == printed["small"]
    assert stamp.root == printed["small-root"]
    data, stamp = make(tmp_path / "w", LARGE)
    assert hashlib.sha256(data).hexdigest() == printed["large-sha256"]
    assert stamp.root == printed["large-root"]


def test_cordon_opens_the_printed_vector(tmp_path, printed):
    (tmp_path / "v").write_bytes(bytes.fromhex(printed["small"]))
    with Vault(tmp_path / "v", KEY) as vault:
        assert {name: vault.open(name).read() for name in vault.members()} == SMALL
        assert vault.stamp.root == printed["small-root"]
