"""Whether the tables by which a broker decides say what its ledger says. Specification: README.md, "State".

What was charged, revoked and registered is kept twice: in tables, to be looked up, and in the ledger, whose head others
hold. Whoever resets a charge on the disk must rewrite the ledger too, and that shows to all who saw its head.
"""

from __future__ import annotations

import math
import sqlite3

from cordon.broker import ledger
from cordon.broker.release_gate import spending
from cordon.errors import SignatureError


def check(db: sqlite3.Connection) -> None:
    """SignatureError if the ledger's chain is broken, or a table says something else. ``db``: in a transaction."""
    releases, epsilon = 0, 0.0
    revoked: set[tuple[str, str]] = set()
    vaults: dict[str, tuple[int, str]] = {}
    try:
        for _, row, _ in ledger.rows(db):
            if row["kind"] == "ADMIT":
                releases, epsilon = releases + 1, epsilon + row["epsilon"]
            elif row["kind"] == "RESTORED":  # the sum as it was then
                releases, epsilon = row["spent"]["releases"], row["spent"]["epsilon"]
            elif row["kind"] == "REVOKE":
                revoked.add((row["what"], row["value"]))
            elif row["kind"] == "REGISTER":
                vaults[row["vault"]] = (row["version"], row["root"])
            elif row["kind"] == "FORGET":
                del vaults[row["vault"]]
    except (KeyError, TypeError) as error:
        raise SignatureError("a ledger row lacks what its kind must have: it was changed") from error
    found_releases, found_epsilon = spending(db)
    differ = {
        "charges": found_releases == releases and math.isclose(found_epsilon, epsilon, rel_tol=1e-9, abs_tol=1e-9),
        "revocations": set(db.execute("SELECT kind, value FROM revocations")) == revoked,
        "vaults": {row[0]: row[1:] for row in db.execute("SELECT vault, version, root FROM vaults")} == vaults,
    }
    if wrong := [name for name, same in differ.items() if not same]:
        raise SignatureError(
            f"the state was damaged, or changed by other hands: {', '.join(wrong)} say something else than the ledger; "
            "restore a backup"
        )
