"""``cordon model``: who holds a study's release right makes a key, looks at a sealed model, helps to open it, opens it.

Nothing here needs the network or the coordinator. Where the study wants two persons, they may sit at two machines: one
makes a share for the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open

from cordon import documents, new_file, release_key, sealed_model, study
from cordon.attest.verdict import printable
from cordon.broker.keys.secret import read_private
from cordon.cli.commands import adder
from cordon.errors import ConfigError, SealError
from cordon.sealed_model import Header, Sealed
from cordon.sealing import KemKey

T = TypeVar("T")

CHECKED = "study, holders and persons are those of the signed contract (contents and author: only by opening it)"
NOT_CHECKED = "not compared with a study contract (--study): whoever made the file may have written all of this"


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Add ``model`` and its commands."""
    top = sub.add_parser(
        "model",
        help="a model sealed at rest: keygen, info, share, open",
        description="A job leaves its model encrypted (model.sealed). The study contract names the holders of the "
        "release right, who can open it, and whether one of them is enough or two must agree. Where two must, one "
        "writes a share for the other ('share'), who then opens the model with it ('open').",
    )
    command = adder(top)

    keygen = command(
        "keygen",
        _keygen,
        "make the key pair of one holder of the release right",
        "The public half goes into release.holders of the study contract. Without the private one the holder opens "
        "nothing: keep a copy off line.",
    )
    keygen.add_argument("--out", type=Path, required=True, help="file for the private key (mode 0600, must not exist)")
    keygen.add_argument("--pub", type=Path, help="file for the public key; OUT with the suffix .pub if not given")

    info = command(
        "info",
        _info,
        "show what a sealed model is and who can open it",
        "Needs no key, so nothing of the model itself is verified: with --study the header is compared with the signed "
        "contract, without it with nothing. Anybody can write such a file; open it, compare the hash with the report.",
    )
    _add_file(info)

    share = command(
        "share",
        _share,
        "let another holder open a model that wants two persons",
        "Writes your share of this one file, sealed to the other holder: give it to nobody without reading what it is.",
    )
    _add_file(share)
    share.add_argument("--key", type=Path, required=True, metavar="FILE", help="your private release key")
    share.add_argument(
        "--for", type=Path, required=True, metavar="FILE", dest="recipient", help="the other's public key"
    )
    share.add_argument("--out", type=Path, required=True, help="file for the share (must not exist)")

    opening = command(
        "open",
        _open,
        "decrypt a model for who holds the release right",
        "Writes safetensors (mode 0600, must not exist), and only if every byte is what was sealed.",
    )
    _add_file(opening)
    opening.add_argument(
        "--key", type=Path, required=True, action="append", metavar="FILE", help="private release key; may be repeated"
    )
    opening.add_argument(
        "--share", type=Path, default=[], action="append", metavar="FILE", help="another holder's share for your key"
    )
    opening.add_argument("--out", type=Path, required=True, help="file for the model (must not exist)")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the sealed model (model.sealed)")
    parser.add_argument(
        "--study", type=Path, metavar="FILE", help="study.yml, its signature beside it: the contract that must fit"
    )


def _keygen(args: argparse.Namespace) -> int:
    if not args.out.name:
        raise ConfigError(f"{args.out}: not the name of a file")
    public = args.out.with_suffix(".pub") if args.pub is None else args.pub
    if args.out == public:
        raise ConfigError(f"{args.out}: cannot be both files; choose another --out, or give --pub")
    key = KemKey.generate()
    with new_file.create(public, 0o644) as file:  # neither half without the other
        file.write(release_key.encode_public(key.public_bytes))
        file.flush()
        new_file.write(args.out, release_key.encode_private(key))
    fingerprint = release_key.fingerprint(key.public_bytes)
    if args.json:
        print(json.dumps({"key": str(args.out), "pub": str(public), "fingerprint": fingerprint}))
    else:
        print(f"private key: {args.out}\npublic key: {public} (for release.holders of the study contract)")
        print(f"fingerprint: {fingerprint}")
    return 0


def _info(args: argparse.Namespace) -> int:
    with _opened(args.file) as (_, sealed):
        checked = _check(sealed.header, args.study)
    if args.json:
        print(json.dumps(_facts(sealed, checked)))
    else:
        _tell(sealed, checked)
    return 0


def _share(args: argparse.Namespace) -> int:
    key = _key(args.key)
    recipient = _decoded(args.recipient, release_key.decode_public, release_key.MAX_KEY_FILE)
    with _opened(args.file) as (_, sealed):
        checked = _check(sealed.header, args.study)
    share = sealed_model.make_share(sealed, key, recipient)
    new_file.write(args.out, sealed_model.encode_share(share))
    if args.json:
        said = {"share": str(args.out), "sender": share.sender, "recipient": share.recipient}
        print(json.dumps({**_facts(sealed, checked), **said}))
    else:
        _tell(sealed, checked)
        print(f"{args.out}: the share of {share.sender} for {share.recipient}, who can now open this file")
    return 0


def _open(args: argparse.Namespace) -> int:
    keys = [_key(path) for path in args.key]
    shares = [_decoded(path, sealed_model.decode_share, sealed_model.MAX_SHARE_FILE) for path in args.share]
    with _opened(args.file) as (file, sealed):
        checked = _check(sealed.header, args.study)
        tensors = _write(args.out, sealed_model.open_body(sealed, file, keys, shares))
    if args.json:
        print(json.dumps({**_facts(sealed, checked), "out": str(args.out), "tensors": tensors}))
        return 0
    _tell(sealed, checked)
    for name, (kind, shape) in tensors.items():
        print(f"  {printable(name)}: {kind} {tuple(shape)}")
    print(f"{args.out}: opened, {len(tensors)} tensors, SHA-256 {sealed.header.sha256}")
    return 0


def _write(out: Path, pieces: Iterable[bytes]) -> dict[str, tuple[str, list[int]]]:
    """The model to ``out``, whole or not at all; its tensors by name."""
    with new_file.create(out) as file:
        file.writelines(pieces)
        file.flush()
        return _tensors(Path(file.name))


def _tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """name -> (type, shape) of what safetensors file ``path`` holds."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (each.get_dtype(), list(each.get_shape())) for name, each in slices.items()}
    except SafetensorError as error:
        raise SealError("the model opens, but was sealed as something else than safetensors") from error


def _check(header: Header, path: Path | None) -> bool:
    """Whether the header was compared with a contract; PolicyRefused if it does not fit."""
    if path is not None:
        sealed_model.check_study(header, study.load_signed(path, datetime.now(UTC)))
    return path is not None


def _key(path: Path) -> KemKey:
    data = read_private(path, "release key", release_key.MAX_KEY_FILE)
    try:
        return release_key.decode_private(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _decoded(path: Path, decode: Callable[[bytes], T], limit: int) -> T:
    data = documents.read_bytes(path, limit)
    try:
        return decode(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Sealed]]:
    """The sealed model at ``path``: the file, and what anybody can read of it."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block or never end
            raise ConfigError(f"{path}: not a regular file")
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        try:
            sealed = sealed_model.read(file)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        yield file, sealed


def _facts(sealed: Sealed, checked: bool) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(sealed.header)
    del facts["stanzas"]
    return {"file": sealed.id, **facts, "study_checked": checked}


def _tell(sealed: Sealed, checked: bool) -> None:
    header = sealed.header
    print(f"{header.about}\n  file {sealed.id}\n  study {header.study}\n  job {header.job_digest}")
    print(f"  layout {header.layout_digest}\n  model SHA-256 {header.sha256}")
    print(f"opens to {'any one' if header.persons == 1 else 'any two together'} of:")
    for name, key in sorted(header.holders.items()):
        print(f"  {name}, key {key}")
    print(CHECKED if checked else NOT_CHECKED)
