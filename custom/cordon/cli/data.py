"""``cordon data check``: read a hospital's source as a job would, and show what came of every row.

Runs on site and changes nothing. It shows counts, pointers and columns, never a value.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cordon import documents
from cordon.cli.vault import read_key, readable
from cordon.data.contract import FeatureContract, Mapping
from cordon.data.harmonise import judge
from cordon.data.ledger import Balance, Conservation
from cordon.data.load import read_source
from cordon.data.source import FolderSource, Source, VaultSource
from cordon.data.vault import Vault
from cordon.errors import ConfigError, DataError
from cordon.site.policy import SitePolicy

SHOWN = 20


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``data`` and its commands."""
    data = sub.add_parser("data", help="a hospital's data: check it against a feature contract")
    commands = data.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="read the source through its mapping and show what would be used and what rejected",
        description="Reads the site's own data as a job would and prints a conservation table: in = used + rejected by "
        "reason + filtered by rule. Never prints a value. The mapping's signature is not checked here (a job does).",
    )
    check.add_argument("--policy", type=Path, required=True, help="the site policy, local/cordon.yml of the kit")
    check.add_argument(
        "--contract", type=Path, required=True, help="the feature contract, app/config/contract.yml of the job"
    )
    check.add_argument("--key", type=Path, metavar="FILE", help="the vault key, where the policy names a vault")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    policy = documents.load(args.policy, SitePolicy)
    contract = documents.load(args.contract, FeatureContract)
    folder = args.policy.parent
    mapping = documents.load(policy.resolve(folder, policy.data.mapping), Mapping)
    with _source(policy, folder, args.key) as source:
        ledger = read_source(contract, mapping, policy.data.connector, source).conservation
    verdict: DataError | None = None
    try:
        judge(contract, ledger)
    except DataError as error:
        verdict = error
    if args.json:
        print(json.dumps(_document(policy, contract, ledger, verdict), indent=1))
    else:
        print(f"{policy.site}: {policy.data.connector} data for contract {contract.contract}")
        print("note: the mapping's signature is not checked by this command")
        if policy.data.vault is not None:
            print("note: whether this is the newest version of the vault is not checked here (the key broker does)")
        print()
        print("\n".join(_table("patients", ledger.patients) + _table("values", ledger.rows)))
        for example in ledger.examples[:SHOWN]:
            print(f"  {example.pointer}  {example.column}  {example.reason}")
        if len(ledger.examples) > SHOWN:
            print(f"  ... and more; these are the first {SHOWN}")
    if verdict is not None:
        raise verdict
    return 0


@contextmanager
def _source(policy: SitePolicy, folder: Path, key: Path | None) -> Iterator[Source]:
    """The source that the policy names, open for reading."""
    if policy.data.vault is not None:
        if key is None:
            raise ConfigError("the policy names a vault: give its key with --key FILE (cordon vault keygen)")
        with readable(), Vault(policy.resolve(folder, policy.data.vault), read_key(key)) as vault:
            yield VaultSource(vault)
    elif policy.data.unsafe_source is not None:
        if key is not None:
            raise ConfigError("--key goes with a vault, and the policy names a plain source")
        yield FolderSource(policy.resolve(folder, policy.data.unsafe_source))


def _document(
    policy: SitePolicy, contract: FeatureContract, ledger: Conservation, verdict: DataError | None
) -> dict[str, object]:
    return {
        "site": policy.site,
        "connector": policy.data.connector,
        "contract": contract.contract,
        "ok": verdict is None,
        "code": verdict.code if verdict else None,
        "detail": str(verdict) if verdict else None,
        **ledger.to_dict(),
        "examples": [example._asdict() for example in ledger.examples[:SHOWN]],
        "signature": "not_checked",
        "newest_vault": None if policy.data.vault is None else "not_checked",
    }


def _table(what: str, balance: Balance) -> list[str]:
    lines = [(f"{what} in", balance.rows_in), ("used", balance.rows_out)]
    lines += [(f"rejected: {reason}", count) for reason, count in sorted(balance.rejected.items())]
    lines += [(f"filtered: {rule}", count) for rule, count in sorted(balance.filtered.items())]
    return [f"{name:<40}{count:>10}" for name, count in lines] + [""]
