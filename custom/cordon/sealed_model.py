"""A model at rest (``model.sealed``), format 1: encrypted to who holds the study's release right, and to nobody else.

::

    offset  bytes  field (integers big-endian)
    0       8      magic, hex 8f 63 6f 72 64 6f 6e 4d
    8       4      format, 1
    12      4      H, length of the header, at most MAX_HEADER
    16      H      header: RFC 8785 canonical JSON of ``Header``
    16+H           body: the model's safetensors bytes as a STREAM (``cordon.stream``), chunks of 1 MiB

* ``context`` = canonical JSON of the header without its ``stanzas``.
* ``id`` = digest("cordon/model-at-rest/id/v1", bytes 0 to 16+H): names the file.
* The content key K, 32 fresh random bytes per file, is shared anew in each stanza. There is one stanza per group of
  ``persons`` holders, in lexical order. With one person the share *is* K, with two K = share 0 xor share 1. A share is
  sealed (``cordon.sealing``) to its holder: purpose "cordon/model-at-rest/v1", bound to context, the names of the group
  in order, and the holder's name.
* Key of the body = HKDF-SHA256(ikm = K, no salt, info = lp("cordon/model-at-rest/body/v1") || lp(id), 32 bytes), where
  id is 32 bytes.

So whatever is changed in the header, the shares or the body does not open. ``sha256`` of the plaintext is in the clear:
the job's event log tells it too, and it makes one file open to one model, where AES-GCM alone would let a sealer make
one that opens to two (Grubbs, Lu and Ristenpart, "Message Franking via Committing Authenticated Encryption", 2017).

A *share file* carries one holder's share to another: canonical JSON of ``Share``, sealed to the recipient with purpose
"cordon/model-share/v1", bound to the file's id and both names. It serves for that file alone.

Limitations: who made a file is not shown, for anybody can seal to public keys: compare ``sha256`` with what the job's
report says, and the header with the signed contract (``check_study``). Size, study, job and version are not hidden. A
person who opened a model has it; a coordinator that is not the measured software can seal to whom it likes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cordon import release_key, sealed_header, sealing, signing, stream
from cordon.documents import Document, body_of
from cordon.errors import ConfigError, PolicyRefused, SealError
from cordon.sealed_header import KEY_BYTES, SealedShare, Stanza
from cordon.sealed_header import MAGIC as MAGIC
from cordon.sealed_header import Header as Header
from cordon.sealed_header import Sealed as Sealed
from cordon.sealed_header import Subject as Subject
from cordon.sealed_header import check_study as check_study
from cordon.sealed_header import read as read
from cordon.sealing import KemKey
from cordon.signing import lp
from cordon.study import Name, ReleaseRight, Sha256

MAX_SHARE_FILE = 8 * 1024  # bytes

_MODEL, _SHARE, _BODY = "cordon/model-at-rest/v1", "cordon/model-share/v1", b"cordon/model-at-rest/body/v1"


class Share(Document, frozen=True, kw_only=True):
    """The share of ``sender`` for ``recipient``, of the file whose id is ``file``."""

    v: Literal[1]
    file: Sha256
    sender: Name
    recipient: Name
    share: SealedShare


def seal(model: bytes, subject: Subject, release: ReleaseRight, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """``model`` (safetensors bytes) as a file that ``release.persons`` of its holders open together.

    ``random`` makes the content key and the shares; a second file with the same bytes of it gives both away.

    Raises:
        ConfigError: ``subject`` does not fit its schema.
    """
    key = random(KEY_BYTES)
    facts = {
        **body_of(subject),
        "v": 1,
        "sha256": hashlib.sha256(model).hexdigest(),
        "persons": release.persons,
        "holders": {name: release_key.fingerprint(public) for name, public in release.holders.items()},
    }
    try:
        bare = msgspec.convert({**facts, "stanzas": ()}, Header, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a model of {subject.job!r:.100} cannot be sealed: {error}") from error
    context, stanzas = bare.context, []
    for group in bare.groups:
        parts = [random(KEY_BYTES) for _ in group[1:]]
        shares = [
            sealing.seal(part, sealing.decode_kem_key(release.holders[name]), _MODEL, *_bound(context, group, name))
            for name, part in zip(group, [*parts, _xor([key, *parts])], strict=True)
        ]
        stanzas.append(Stanza(holders=group, shares=tuple(shares)))
    prefix, file_id = sealed_header.encode(msgspec.structs.replace(bare, stanzas=tuple(stanzas)))
    return b"".join([prefix, *stream.encrypt(_body_key(key, file_id), io.BytesIO(model))])


def open_model(
    source: BinaryIO, keys: Sequence[KemKey], shares: Sequence[Share] = ()
) -> tuple[Sealed, Iterator[bytes]]:
    """The header and the pieces of the model (safetensors bytes); they are the whole model once the iterator ends.

    Args:
        source: the sealed model.
        keys: of holders; one, or two who sit at one machine.
        shares: what other holders made with ``make_share`` for one of ``keys``.

    Raises:
        PolicyRefused: ``not_a_holder``, or ``two_persons`` where one alone asks.
        SealError: a share or the body does not open: changed, or of another file. Also while iterating.
        ConfigError: not a sealed model.
    """
    sealed = read(source)
    return sealed, open_body(sealed, source, keys, shares)


def open_body(
    sealed: Sealed, source: BinaryIO, keys: Sequence[KemKey], shares: Sequence[Share] = ()
) -> Iterator[bytes]:
    """The pieces of the model whose header ``read`` gave, from ``source`` as it left it; else as ``open_model``.

    For who judges the header before it is opened: read twice, it could be another one the second time.
    """
    names = {sealed.holder(key.public_bytes): key for key in keys}
    parts = {tuple(sorted((share.sender, share.recipient))): _given(sealed, share, names) for share in shares}
    key = _body_key(_content_key(sealed.header, names, parts), sealed.id)
    return _verified(stream.decrypt(key, source), sealed.header.sha256)


def open_file(path: Path, keys: Sequence[KemKey], shares: Sequence[Share] = ()) -> tuple[Header, bytes]:
    """(header, safetensors bytes) of the sealed model at ``path``; errors as ``open_model``."""
    try:
        with open(path, "rb") as file:
            sealed, pieces = open_model(file, keys, shares)
            return sealed.header, b"".join(pieces)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def make_share(sealed: Sealed, key: KemKey, recipient: bytes) -> Share:
    """The share of the holder of ``key``, for the holder whose public key is ``recipient``: the two open ``sealed``.

    Raises:
        PolicyRefused: ``not_a_holder``, or ``no_share``: one person opens it, or both keys are one person's.
        SealError: the share in the file does not open.
    """
    sender, to = sealed.holder(key.public_bytes), sealed.holder(recipient)
    if sealed.header.persons == 1:
        raise PolicyRefused([("no_share", f"{to} opens this model alone")])
    if sender == to:
        raise PolicyRefused([("no_share", f"both keys are of {to}: the second person must be another")])
    part = _own_share(sealed.header, tuple(sorted((sender, to))), sender, key)
    bound = (bytes.fromhex(sealed.id), sender.encode(), to.encode())
    made = sealing.seal(part, sealing.decode_kem_key(recipient), _SHARE, *bound)
    return Share(v=1, file=sealed.id, sender=sender, recipient=to, share=made)


def encode_share(share: Share) -> bytes:
    """The text of a share file."""
    return signing.canonical(body_of(share)) + b"\n"


def decode_share(data: bytes) -> Share:
    """Inverse of ``encode_share``; ConfigError if it is none."""
    if len(data) > MAX_SHARE_FILE:
        raise ConfigError(f"not a share file: larger than {MAX_SHARE_FILE} bytes")
    return sealed_header.decode(data.removesuffix(b"\n"), Share, "share file")


def _given(sealed: Sealed, share: Share, names: Mapping[str, KemKey]) -> bytes:
    """The share that another holder re-sealed to one of ``names``."""
    if share.file != sealed.id:
        raise SealError(
            f"the share of {share.sender} is for another file ({share.file[:16]}, this is {sealed.id[:16]})"
        )
    if share.recipient not in names:
        raise SealError(f"the share of {share.sender} is for {share.recipient}; keys are given of {', '.join(names)}")
    if share.sender not in sealed.header.holders:
        raise PolicyRefused([("not_a_holder", f"{share.sender}, whose share this says it is, has no release right")])
    bound = (bytes.fromhex(sealed.id), share.sender.encode(), share.recipient.encode())
    return sealing.open_sealed(share.share, names[share.recipient].private, _SHARE, *bound)


def _content_key(header: Header, names: Mapping[str, KemKey], parts: Mapping[tuple[str, ...], bytes]) -> bytes:
    """K, of the first group that is complete; ``parts`` are what others gave, by their group."""
    for group in header.groups:
        own = [name for name in group if name in names]
        if len(own) == len(group) or (own and group in parts):
            shares = [_own_share(header, group, name, names[name]) for name in own]
            return _xor(shares if len(own) == len(group) else [*shares, parts[group]])
    if not names:
        raise PolicyRefused([("not_a_holder", "no key is given")])
    others = ", ".join(sorted(set(header.holders) - set(names)))
    detail = f"{header.about} opens to two persons together, and only {', '.join(names)} is here; ask one of {others}"
    raise PolicyRefused([("two_persons", f"{detail} for a share (cordon model share)")])


def _own_share(header: Header, group: tuple[str, ...], name: str, key: KemKey) -> bytes:
    stanza = header.stanzas[header.groups.index(group)]
    sealed = stanza.shares[group.index(name)]
    return sealing.open_sealed(sealed, key.private, _MODEL, *_bound(header.context, group, name))


def _verified(pieces: Iterator[bytes], sha256: str) -> Iterator[bytes]:
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
        yield piece
    if seen.hexdigest() != sha256:
        raise SealError(f"the model has SHA-256 {seen.hexdigest()}, its header says {sha256}")


def _bound(context: bytes, group: tuple[str, ...], name: str) -> list[bytes]:
    return [context, *(each.encode() for each in group), name.encode()]


def _body_key(key: bytes, file_id: str) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, None, lp(_BODY) + lp(bytes.fromhex(file_id))).derive(key)


def _xor(parts: Sequence[bytes]) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "big")
    return total.to_bytes(KEY_BYTES, "big")
