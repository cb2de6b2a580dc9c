"""The commands of one group, each with ``--json``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Command = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def adder(group: argparse.ArgumentParser) -> Command:
    """``add(name, run, text, more)``: ``text`` is the command's line in the list, ``more`` follows it in its help."""
    commands: argparse._SubParsersAction[Any] = group.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}"
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print one JSON object")
        return made

    return add
