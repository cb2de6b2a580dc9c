"""What ``cordon attest verify`` prints: one JSON object, or a table for a person; and the exit code of a verdict."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from cordon.attest.verdict import Appraisal, printable
from cordon.errors import ConfigError

EXIT_CODES = {"pass": 0, "not_checked": 2, "fail": 1}  # from best to worst
COLOURS = {"pass": "32", "fail": "31", "not_checked": "33"}
MEANING = {
    "pass": "pass: the vendor's hardware signed this, and all that the policy asks of this evidence holds.",
    "fail": "fail: don't trust this. No to: {failed}.",
    "not_checked": "not checked: nothing speaks against this, but it's not enough to trust it.",
}
WIDTH = 120


def emit(args: argparse.Namespace, appraisals: Sequence[Appraisal], policy: Any) -> int:
    """Print the verdict on one piece of evidence, of one device or several; returns its exit code."""
    verdict = combined(appraisals)
    write(_json(verdict) if args.json else "\n".join(_table(verdict, policy)))
    return EXIT_CODES[verdict["verdict"]]


def _json(verdict: dict[str, Any]) -> str:
    try:
        return json.dumps(verdict, allow_nan=False)
    except ValueError as error:
        raise ConfigError(f"claims_format: the evidence holds a number that JSON has not: {error}") from error


def combined(appraisals: Sequence[Appraisal]) -> dict[str, Any]:
    """The object of ``Appraisal.to_json``; of several devices, each is named in its details, and the worst counts."""
    each = [appraisal.to_json() for appraisal in appraisals]
    if len(each) == 1:
        return each[0]
    checks = [
        {**check, "detail": f"device {number}: {check['detail']}"}
        for number, one in enumerate(each)
        for check in one["checks"]
    ]
    return {
        "genuine": bool(each) and all(one["genuine"] for one in each),
        "verdict": max((one["verdict"] for one in each), key=list(EXIT_CODES).index, default="not_checked"),
        "checks": checks,
        "claims": {"devices": [one["claims"] for one in each]},
    }


def write(text: str) -> None:
    """Print ``text``. A reader that goes away must not change the exit code: a verdict of fail would look like 0."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return  # `cordon.cli.main` discards what is left
    except OSError as error:
        raise ConfigError(f"output_unwritable: {error.strerror}") from error


def hanging(head: str, text: str) -> list[str]:
    """``head`` and the lines of ``text`` beside it. No word is cut: a digest has to be copied whole."""
    room = max(WIDTH - len(head), 40)
    lines = textwrap.wrap(printable(text), room, break_long_words=False, break_on_hyphens=False) or [""]
    return [printable(head) + lines[0], *(" " * len(head) + line for line in lines[1:])]


def _table(verdict: dict[str, Any], policy: Any) -> Iterable[str]:
    checks = verdict["checks"]
    wide = max((len(check["code"]) for check in checks), default=0)
    for check in checks:
        head = f"{check['code']:<{wide}}  {check['result']:<11}  "
        first, *rest = hanging(head, check["detail"])
        yield first[:wide] + _coloured(first[wide:], check["result"])
        yield from rest
    yield ""
    yield f"genuine: {'yes' if verdict['genuine'] else 'no'}"
    if policy is None:
        yield "policy: none was given"
    else:
        yield f"policy: {printable(policy_name(policy))}; its signature was not checked by this command"
    failed = ", ".join(dict.fromkeys(check["code"] for check in checks if check["result"] == "fail"))
    if any((each["code"], each["result"]) == ("report_data", "not_checked") for each in checks):
        yield "report_data: nobody compared it (--report-data), so this may be the answer to another challenge"
    if getattr(policy, "gpu", "none") not in ("none", "any") and "measurement" in verdict["claims"]:
        yield "gpu: the policy asks for evidence of GPUs too, which is verified by itself: cordon attest verify gpu"
    yield _coloured(MEANING[verdict["verdict"]].format(failed=failed), verdict["verdict"])


def policy_name(policy: Any) -> str:
    """Name and digest of a policy, or its kind."""
    from cordon import documents

    return f"{getattr(policy, 'name', type(policy).__name__)}, digest {documents.content_digest(policy)}"


def _coloured(line: str, result: str) -> str:
    if not (sys.stdout and sys.stdout.isatty()) or "NO_COLOR" in os.environ:  # no stdout: a job started without one
        return line
    return line.replace(result, f"\x1b[{COLOURS[result]}m{result}\x1b[0m", 1)
