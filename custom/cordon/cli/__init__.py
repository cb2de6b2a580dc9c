"""``cordon ...``: one module per command group.

Each module has ``add_parser(sub)``; a command's ``run(args)`` returns an exit code or raises. Exit codes of every
command: 0 ok, 1 negative verdict, 2 not checked, 3 usage or unreadable input, 4 refused by policy, 70 internal error,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import traceback
from typing import Any, NoReturn

import cordon
from cordon.errors import CordonError

GROUPS = ("demo", "data", "sign", "attest", "kit")
USAGE, INTERNAL, INTERRUPTED = 3, 70, 130


class _Parser(argparse.ArgumentParser):
    """argparse's own exit code for a usage error, 2, means "not checked" here; options are spelled out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or only the group named ``command``: a verdict takes less time than others' imports."""
    top = _Parser(
        prog="cordon",
        description="Confidential federated learning for hospitals, on NVIDIA FLARE.",
        epilog="Exit codes: 0 ok, 1 negative verdict, 2 not checked, 3 usage or unreadable input, 4 refused by policy, "
        "70 internal error, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"cordon {cordon.__version__}")
    sub = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for group in [each for each in GROUPS if command not in GROUPS or each == command]:
        if group != "demo" or importlib.util.find_spec("cordon.demo") is not None:  # production images have no demo
            importlib.import_module(f"cordon.cli.{group}").add_parser(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command and map how it ends to an exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(words[0] if words else None).parse_args(words)
    try:
        return int(args.run(args))
    except CordonError as error:
        print(f"cordon: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cordon: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception:  # the one broad handler: an internal error must not look like a negative verdict
        traceback.print_exc()
        print("cordon: internal error; please report the lines above", file=sys.stderr)
        return INTERNAL
