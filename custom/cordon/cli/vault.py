"""``cordon vault``: a dataset encrypted at rest in one file; made, looked at, verified and given another key.

The key file holds the 32 bytes of the vault key; in production it stays with the hospital's security team, which hands
the key to the key broker.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cordon import documents, new_file
from cordon.attest.verdict import printable
from cordon.broker.keys.secret import read_private
from cordon.cli import sealable
from cordon.cli.commands import adder
from cordon.data import vault
from cordon.data.source import FolderSource
from cordon.data.vault import Stamp, Vault
from cordon.errors import ConfigError, SourceError, VaultError

UNREADABLE = ("unreadable", "not_a_vault", "unknown_format")
"""Reasons that say nothing of a vault being changed: exit code 3, not 1."""


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Add ``vault`` and its commands."""
    top = sub.add_parser(
        "vault",
        help="a dataset encrypted at rest: keygen, seal, info, verify, rekey",
        description="A vault is one file that holds a dataset's files (its members) encrypted under one key. Its stamp "
        "(id, version, root) says which dataset it is and which version: keep it, and give it to the key broker, for "
        "an older vault of the same key opens too and only the stamp tells. The root is a digest of header and "
        "directory; no part of a stamp is secret.",
    )
    command = adder(top)

    keygen = command(
        "keygen",
        _keygen,
        "make a vault key",
        "Without this file the data cannot be read again: back it up where no training host can reach it.",
    )
    keygen.add_argument("out", type=Path, metavar="FILE", help="file for 32 random bytes (mode 0600, must not exist)")

    seal = command(
        "seal",
        _seal,
        "encrypt a file, or the files of a folder, to a new vault",
        "The plain files stay where they are; delete them yourself once the vault verifies.",
    )
    seal.add_argument("source", type=Path, metavar="SOURCE", help="a file, or a folder with nothing but files in it")
    seal.add_argument("out", type=Path, metavar="OUT", help="the vault to write (must not exist)")
    _add_key(seal)
    seal.add_argument(
        "--update-of", type=Path, metavar="OLD", help="an older vault of this dataset: same id, the next version"
    )
    _add_stamp_out(seal)

    info = command(
        "info",
        _info,
        "show id, version and stamp of a vault; with its key the members too",
        "Without a key nothing is verified. With it header, end and directory are; the members' contents are not read.",
    )
    info.add_argument("vault", type=Path, metavar="VAULT")
    _add_key(info, required=False)

    verify = command(
        "verify",
        _verify,
        "read a whole vault and say whether every byte is what was sealed",
        "Exit code 1 if not. Only a stamp tells an older version from the newest: both are authentic.",
    )
    verify.add_argument("vault", type=Path, metavar="VAULT")
    _add_key(verify)
    verify.add_argument("--stamp", type=Path, metavar="FILE", help="the stamp it must have (seal --stamp-out)")
    verify.add_argument("--root", metavar="HEX", help="instead of --stamp: the root it must have; goes with --version")
    verify.add_argument("--version", type=int, metavar="N", help="instead of --stamp: the version it must have")

    rekey = command(
        "rekey",
        _rekey,
        "encrypt a vault anew under another key: same id, the next version",
        "Give --stamp, or an older version that was put back becomes the newest. The old file stays, and its key still "
        "opens it: destroy both once the broker has the new key and stamp.",
    )
    rekey.add_argument("old", type=Path, metavar="OLD")
    rekey.add_argument("new", type=Path, metavar="NEW", help="the vault to write (must not exist)")
    _add_key(rekey)
    rekey.add_argument("--new-key", type=Path, required=True, metavar="FILE", help="the key to encrypt under")
    rekey.add_argument("--stamp", type=Path, metavar="FILE", help="the stamp OLD must have: else an older one passes")
    _add_stamp_out(rekey)


def _add_key(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--key", type=Path, required=required, metavar="FILE", help="the vault key (vault keygen)")


def _add_stamp_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stamp-out", type=Path, metavar="FILE", help="write the stamp here too, for the key broker")


def read_key(path: Path) -> bytes:
    """The vault key in ``path``; ConfigError if it holds something else, or if others than its owner may read it."""
    key = read_private(path, "vault key", vault.KEY_BYTES)
    if len(key) != vault.KEY_BYTES:
        raise ConfigError(f"{path}: {len(key)} bytes, a vault key has {vault.KEY_BYTES} (cordon vault keygen)")
    return key


@contextmanager
def readable() -> Iterator[None]:
    """A file that is no vault is unreadable input, not a negative verdict."""
    try:
        yield
    except VaultError as error:
        if error.reason in UNREADABLE:
            raise ConfigError(str(error)) from error
        raise


def _keygen(args: argparse.Namespace) -> int:
    new_file.write(args.out, os.urandom(vault.KEY_BYTES))
    _show(args, {"key": str(args.out)}, [f"key: {args.out}"])
    return 0


def _seal(args: argparse.Namespace) -> int:
    key = read_key(args.key)
    name, version = None, 1
    if args.update_of is not None:
        with readable(), Vault(args.update_of, key) as old:
            name, version = bytes.fromhex(old.stamp.vault), old.stamp.version + 1
    source = FolderSource(args.source)
    sealable.apart(args.source, args.key, args.out, args.update_of, args.stamp_out)
    try:
        names, size = sealable.names_of(args.source, source)
        with _stamp_file(args.stamp_out) as write_stamp, _progress("sealing", size) as progress:
            members = sealable.opened(source, names)
            stamp = vault.seal(members, args.out, key, vault=name, version=version, progress=progress)
            write_stamp(stamp)
    except SourceError as error:
        raise ConfigError(str(error)) from error
    _show_sealed(args, args.out, stamp, len(names))
    return 0


def _rekey(args: argparse.Namespace) -> int:
    key, new_key = read_key(args.key), read_key(args.new_key)
    if key == new_key:
        raise ConfigError(f"{args.new_key}: the same key as {args.key}; a new one is wanted (cordon vault keygen)")
    expect = None if args.stamp is None else documents.load(args.stamp, Stamp)
    with readable(), Vault(args.old, key, expect) as old:
        names = old.members()
        size = sum(map(old.size, names))
    with readable(), _stamp_file(args.stamp_out) as write_stamp, _progress("rekeying", size) as progress:
        stamp = vault.rekey(args.old, key, args.new, new_key, expect=expect, progress=progress)
        write_stamp(stamp)
    _show_sealed(args, args.new, stamp, len(names), expect is not None)
    return 0


def _info(args: argparse.Namespace) -> int:
    with readable():
        header = vault.read_header(args.vault)
        if args.key is None:
            members = None
            stamp = vault.stamp_of(args.vault)
        else:
            with Vault(args.vault, read_key(args.key)) as opened:
                members = [(name, opened.size(name)) for name in opened.members()]
                stamp = opened.stamp
        size = args.vault.stat().st_size
    said: dict[str, Any] = {
        "path": str(args.vault),
        "bytes": size,
        "chunk": header.chunk,
        "stamp": msgspec.to_builtins(stamp),
        "verified": "nothing" if members is None else "header_and_directory",
    }
    lines = [*_stamp_lines(args.vault, stamp), f"bytes: {size}", f"chunk: {header.chunk}"]
    if members is None:
        lines.append("not verified: no key was given; all of this is what the file says")
    else:
        said["members"] = [{"name": name, "size": length} for name, length in members]
        lines += [f"{length:>16}  {printable(name)}" for name, length in members]
        lines.append("verified: header, end and directory; the contents were not read (cordon vault verify)")
    _show(args, said, lines)
    return 0


def _verify(args: argparse.Namespace) -> int:
    if (args.root is None) != (args.version is None) or (args.stamp is not None and args.root is not None):
        raise ConfigError("want --stamp FILE, or --root HEX with --version N, or none of them")
    key = read_key(args.key)
    try:
        with readable(), Vault(args.vault, key, _wanted(args)) as opened:
            names = opened.members()
            with _progress("verifying", sum(map(opened.size, names))) as progress:
                vault.verify(opened, progress)
            stamp = opened.stamp
    except VaultError as error:
        if args.json:
            print(json.dumps({"path": str(args.vault), "ok": False, "reason": error.reason}))
        raise
    compared = args.stamp is not None or args.root is not None
    said = {"path": str(args.vault), "ok": True, "members": len(names), "stamp": msgspec.to_builtins(stamp)}
    lines = [*_stamp_lines(args.vault, stamp), f"verified: all of {len(names)} members"]
    lines.append("it is the version wanted" if compared else "no stamp was given: an older version would verify too")
    _show(args, {**said, "stamp_compared": compared}, lines)
    return 0


def _wanted(args: argparse.Namespace) -> Stamp | None:
    if args.stamp is not None:
        return documents.load(args.stamp, Stamp)
    if args.root is None:
        return None
    # The root covers the header, and with it the id: the file's own id adds nothing that could pass a wrong vault.
    said = {"vault": vault.read_header(args.vault).vault, "version": args.version, "root": args.root}
    try:
        return msgspec.convert(said, Stamp)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--root, --version: {error}") from error


def _show_sealed(args: argparse.Namespace, out: Path, stamp: Stamp, members: int, compared: bool | None = None) -> None:
    """``compared``: whether the vault that was rekeyed had the stamp wanted; None where there was none to compare."""
    said = {"path": str(out), "members": members, "stamp": msgspec.to_builtins(stamp)}
    lines = [*_stamp_lines(out, stamp), f"members: {members}"]
    if compared is not None:
        said["stamp_compared"] = compared
        lines.append("it was the version wanted" if compared else "no stamp was given: an older version passes too")
    _show(args, said, lines)


@contextmanager
def _stamp_file(path: Path | None) -> Iterator[Callable[[Stamp], None]]:
    """What writes the stamp to ``path``; that it cannot be written is said before hours of sealing, not after."""
    if path is None:
        yield lambda stamp: None
        return
    with new_file.create(path, 0o644) as file:
        yield lambda stamp: file.writelines([json.dumps(msgspec.to_builtins(stamp), indent=1).encode(), b"\n"])


def _stamp_lines(path: Path, stamp: Stamp) -> list[str]:
    return [f"{path}", f"vault: {stamp.vault}", f"version: {stamp.version}", f"root: {stamp.root}"]


def _show(args: argparse.Namespace, said: dict[str, Any], lines: list[str]) -> None:
    print(json.dumps(said) if args.json else "\n".join(lines))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
