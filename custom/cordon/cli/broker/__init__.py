"""``cordon broker``: a hospital's key broker, run and looked after by its security team, off the training host."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace], int]

EPILOG = """examples:
  cordon broker init --config broker.yml --kek --tls broker.hospital.example
  cordon broker --config broker.yml
  cordon broker status --config broker.yml --json
"""


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Add ``broker`` and its commands; what they need is loaded when one runs."""
    top = sub.add_parser(
        "broker",
        help="a hospital's key broker: releases the vault's key to attested processes",
        description="Without a command: serve, until SIGTERM or SIGINT.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Other names than the commands' own: argparse would let a command's default overwrite what stands before it.
    top.add_argument("--config", dest="serve_config", type=Path, metavar="FILE", help="broker.yml (cordon/broker/v1)")
    top.add_argument("--json", dest="serve_json", action="store_true", help="print JSON, one object per line")
    top.set_defaults(run=_serve_by_default, usage=top.error)
    commands = top.add_subparsers(metavar="COMMAND", required=False)

    def command(
        name: str, text: str, more: str, example: str, run: str, without: bool = False
    ) -> argparse.ArgumentParser:
        """``without``: it can do without a configuration."""
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}",
            epilog=f"example:\n  cordon broker {name} --config broker.yml {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument(
            "--config", type=Path, required=not without, metavar="FILE", help="broker.yml (cordon/broker/v1)"
        )
        made.add_argument("--json", action="store_true", help="print JSON")
        made.set_defaults(run=_lazily(run))
        return made

    command(
        "serve",
        "answer the sites, until SIGTERM or SIGINT",
        "Checks everything first and says all that is wrong at once. Standard output: one line when it listens; "
        "standard error: one line per answer. Collateral is read anew when it changes; a policy, at a restart.",
        "",
        "serve.serve",
    )
    init = command(
        "init",
        "make the broker's keys and state",
        "Prints what the study contract (broker_spki) and the site policy (broker.spki) name. Overwrites nothing; what "
        "is there already is said again. As long as the study contract is not signed, study_digest may be 64 zeros.",
        "--kek --tls broker.hospital.example",
        "init.init",
    )
    init.add_argument("--kek", action="store_true", help="make the key encryption key too, in its file or token")
    init.add_argument("--tls", metavar="NAME", help="make a TLS key and a self-signed certificate for this host name")
    init.add_argument("--days", type=int, default=825, help="how long that certificate is valid (default: 825)")
    add = command(
        "add",
        "take a vault's key into keeping",
        "Verifies that the key opens the vault. A newer version replaces the older one, whose key is destroyed here.",
        "--tenant hospital-a --vault patients.vault --key vault.key",
        "keep.add",
    )
    _tenant(add)
    add.add_argument("--vault", type=Path, required=True, metavar="FILE", help="the vault (cordon vault seal)")
    add.add_argument("--key", type=Path, required=True, metavar="FILE", help="its key (cordon vault keygen)")
    add.add_argument("--allow-older", action="store_true", help="go back to an older version than the one in use")
    forget = command(
        "forget",
        "destroy the key of a vault that must not be opened any more",
        "Processes that were given it lose their leases. A backup made before holds the key still: destroy that too.",
        "--tenant hospital-a --vault 5e0c...",
        "keep.forget",
    )
    _tenant(forget)
    forget.add_argument("--vault", required=True, metavar="ID", help="as `status` shows it (not its file)")
    revoke = command(
        "revoke",
        "take back a lease, a job or a measurement, for good",
        "A running broker says so in its next answer; processes ask every check_s seconds.",
        "--tenant hospital-a --lease 3c5f...",
        "keep.revoke",
    )
    _tenant(revoke)
    what = revoke.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", metavar="ID", help="FLARE's id of a job")
    what.add_argument("--lease", metavar="ID", help="a lease, and the process that holds it")
    what.add_argument("--measurement", metavar="HEX", help="a launch measurement or a package's digest")
    command("status", "show budgets, live leases, ledger heads, vaults and revocations", "", "--json", "keep.status")
    receipts = command(
        "receipts",
        "show the signed receipts of all decisions",
        "With --verify: exit code 1 if the chain or a signature is broken. That receipts are missing at the end shows "
        "only against receipts that a site holds (--leases). With --file: of a file, for an auditor who has no broker.",
        "--tenant hospital-a --verify --study study.yml --site hospital-a\n"
        "  cordon broker receipts --file receipts.jsonl --spki spki.txt --leases key_leases.jsonl",
        "audit.receipts",
        without=True,
    )
    receipts.add_argument("--tenant", metavar="NAME", help="a tenant of the configuration")
    receipts.add_argument(
        "--file", type=Path, metavar="FILE", help="verify these, a JSON envelope (or what --json prints) on each line"
    )
    receipts.add_argument("--since", type=int, default=0, metavar="N", help="only those after number N")
    receipts.add_argument("--verify", action="store_true", help="check chain and signatures")
    receipts.add_argument(
        "--spki", type=Path, metavar="FILE", help="the broker's public key: broker_spki of the study contract"
    )
    receipts.add_argument("--study", type=Path, metavar="FILE", help="or: that contract, signed, ...")
    receipts.add_argument("--site", metavar="NAME", help="... and the hospital in it")
    receipts.add_argument(
        "--leases", type=Path, metavar="FILE", help="also: are all receipts in a kit's key_leases.jsonl among them?"
    )
    backup = command(
        "backup",
        "copy the state to a new folder; the broker may be running",
        "The copy opens with the same key encryption key only: keep that elsewhere. Keys added later are not in it.",
        "--out /mnt/safe/2026-01-15",
        "keep.backup",
    )
    backup.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    restore = command(
        "restore",
        "put a tenant's state back from a backup; the broker must be stopped",
        "What was decided since the backup is lost: say what that may have cost. All leases end.",
        "--tenant hospital-a --from /mnt/safe/2026-01-15 --lost-epsilon 4.1 --last-seen head.json",
        "keep.restore",
    )
    _tenant(restore)
    restore.add_argument("--from", dest="source", type=Path, required=True, metavar="FOLDER", help="made by backup")
    restore.add_argument(
        "--lost-epsilon", type=float, required=True, metavar="E", help="epsilon of the jobs admitted since the backup"
    )
    restore.add_argument(
        "--last-seen", type=Path, metavar="FILE", help="the latest signed ledger head that a site holds (JSON)"
    )

    clock = command(
        "accept-clock",
        "start again after a clock that was wrongly ahead",
        "Until then every request is refused with clock_moved_back. Leases that end later than any could end.",
        "--tenant hospital-a",
        "keep.accept_clock",
    )
    _tenant(clock)


def _tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", required=True, metavar="NAME", help="a tenant of the configuration")


def _serve_by_default(args: argparse.Namespace) -> int:
    if args.serve_config is None:
        args.usage("want --config FILE, or a command")
    args.config, args.json = args.serve_config, args.serve_json
    return _lazily("serve.serve")(args)


def _lazily(name: str) -> Run:
    def run(args: argparse.Namespace) -> int:
        from cordon.cli.broker import audit, init, keep, serve

        module, _, function = name.partition(".")
        return int(getattr({"audit": audit, "init": init, "keep": keep, "serve": serve}[module], function)(args))

    return run
