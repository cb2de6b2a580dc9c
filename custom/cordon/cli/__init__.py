"""``cordon ...``: one module per command group.

Each module has ``add_parser(sub)``; a command's ``run(args)`` returns an exit code or raises. Exit codes of every
command: 0 ok, 1 negative verdict, 2 not checked, 3 usage or unreadable input, 4 refused by policy, 70 internal error,
130 interrupted, 141 the reader of the output went away before the command had ended.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import os
import sys
import traceback
from typing import Any, NoReturn

import cordon
from cordon.attest.verdict import printable
from cordon.errors import CordonError

GROUPS = ("demo", "data", "vault", "broker", "model", "sign", "attest", "kit")
USAGE, INTERNAL, INTERRUPTED, BROKEN_PIPE = 3, 70, 130, 141  # the last two: 128 + SIGINT, 128 + SIGPIPE
OUTPUT_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # of a print, when what it goes to is full


class _Parser(argparse.ArgumentParser):
    """argparse's own exit code for a usage error, 2, means "not checked" here; options are spelled out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {printable(message)}\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or only the group named ``command``: a verdict takes less time than others' imports."""
    top = _Parser(
        prog="cordon",
        description="Confidential federated learning for hospitals, on NVIDIA FLARE.",
        epilog="Exit codes: 0 ok, 1 negative verdict, 2 not checked, 3 usage or unreadable input, 4 refused by policy, "
        "70 internal error, 130 interrupted, 141 broken pipe.",
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
    code = _run(parser(words[0] if words else None).parse_args(words))
    error = _flush()
    if error is None or isinstance(error, BrokenPipeError):  # the verdict stands, also if nobody read it to its end
        return code
    _say(f"output: {error.strerror}")
    return code or USAGE


def _run(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except CordonError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # no verdict yet, so this must not look like one
        return BROKEN_PIPE
    except Exception as error:  # the one broad handler: an internal error must not look like a negative verdict
        if isinstance(error, OSError) and error.filename is None and error.errno in OUTPUT_FAILED:
            _say(f"output: {error.strerror}")
            return USAGE
        _say(f"internal error; please report the lines below\n{traceback.format_exc()}")
        return INTERNAL


def _say(text: str) -> None:
    """An error on stderr: a stranger's words in it are made harmless, and can't begin a line of their own."""
    lines = "\n  ".join(printable(line) for line in f"cordon: {text}".rstrip().split("\n"))
    try:
        print(lines, file=sys.stderr, flush=True)
    except BrokenPipeError:  # `2>&1 | head`: nobody reads it, and the exit code says what there is to say
        return


def _flush() -> OSError | None:
    """Hand over what is left of the output, here: an error at the interpreter's exit would replace the exit code.

    What nobody takes is discarded, so that it does not fail once more. Returns why.
    """
    failed = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # a job started without one
                stream.flush()
        except OSError as error:
            failed = failed or error
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failed
