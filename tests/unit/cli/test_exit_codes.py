"""What a command's end looks like from outside: exit codes when nobody reads, and errors that are safe to show."""

import base64
import json
import os
import subprocess
import sys

import pytest

from cordon import signing
from cordon.attest.appraise import EVIDENCE_TYPE
from cordon.cli import main
from cordon.errors import CordonError

CONTRACT = "jobs/oncology/app/config/contract.yml"
# `cordon` whose only command is made up here, so that how it ends is known.
MADE_UP = """
import sys
import cordon.cli as cli
from cordon.errors import ConfigError, PolicyRefused

def ends(args):
    {body}

cli.parser = lambda command: cli._Parser()
cli._Parser.parse_args = lambda self, words: type("Args", (), {{"run": staticmethod(ends)}})
sys.exit(cli.main([]))
"""
ENDS = {
    "ok": ("print('x'); return 0", 0),
    "a negative verdict": ("print('x'); return 1", 1),
    "not checked": ("print('x'); return 2", 2),
    "refused after some output": ("print('x'); raise PolicyRefused([('a', 'b')])", 4),
    "no verdict yet": ("print('x' * 1_000_000); return 0", 141),
    "no verdict yet, and it would have been no": ("print('x' * 1_000_000); return 1", 141),
}


def python(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    """The exit code and stderr of Python, which buffers its output as it does by default."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *arguments], stdout=stdout, stderr=stderr, text=True, check=False, env=environment
    )
    return done.returncode, done.stderr


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(("body", "code"), ENDS.values(), ids=ENDS)
def test_a_reader_that_goes_away_never_makes_a_verdict(unread, body, code):
    found, err = python("-c", MADE_UP.format(body=body), stdout=unread)
    assert found == code
    assert "Traceback" not in err and "BrokenPipe" not in err


@pytest.mark.parametrize(("kind", "code"), [("contract", 0), ("site", 3)])
def test_check_with_an_unread_pipe(repo_root, unread, kind, code):
    found, err = python("-m", "cordon.cli", "check", kind, str(repo_root / CONTRACT), stdout=unread)
    assert found == code
    assert "BrokenPipe" not in err


@pytest.mark.parametrize("body", ["raise ConfigError('x')", "print('x', file=sys.stderr, flush=True); return 0"])
def test_an_unread_stderr_is_no_negative_verdict_either(unread, body):
    assert python("-c", MADE_UP.format(body=body), stderr=unread)[0] == (3 if "raise" in body else 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(("body", "code"), [("print('x'); return 0", 3), ("print('x'); return 1", 1)])
def test_a_full_disk_is_no_success(body, code):
    with open("/dev/full", "w") as full:
        found, err = python("-c", MADE_UP.format(body=body), stdout=full)
    assert found == code
    assert "No space left" in err and "Traceback" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_nor_is_one_that_a_long_output_meets_on_its_way_an_internal_error():
    with open("/dev/full", "w") as full:
        found, err = python("-c", MADE_UP.format(body="print('x' * 10**6, flush=True); return 0"), stdout=full)
    assert found == 3
    assert "No space left" in err and "Traceback" not in err


def test_a_strangers_words_in_an_error_are_harmless(tmp_path, capsys):
    """A file name, or what a file holds, sends the terminal an escape sequence and forges a line."""
    path = tmp_path / "a\x1b]0;pwned\x07\u202e\ncordon: fits contract"
    assert main(["check", "contract", str(path)]) == 3
    err = capsys.readouterr().err
    assert all(each == "\n" or (each.isascii() and each.isprintable()) for each in err)
    assert [line for line in err.splitlines() if line.startswith("cordon: ")] == err.splitlines()[:1]


@pytest.mark.parametrize("strange", ["\x1b]0;pwned\x07\u202e", "A" * 200_000], ids=["escapes", "long"])
def test_evidence_that_cannot_be_read_is_quoted_harmless_and_short(tmp_path, capsys, strange):
    """The error quotes a name that the evidence's author chose."""
    body = signing.canonical({strange: 1})
    payload = base64.b64encode(body).decode()
    path = tmp_path / "evidence"
    path.write_text(json.dumps({"payloadType": EVIDENCE_TYPE, "payload": payload, "signatures": []}))
    assert main(["attest", "explain", str(path)]) == 3
    err = capsys.readouterr().err
    assert err.startswith("cordon: evidence_format: ") and err.count("\n") == 1 and len(err) < 4200
    assert err.isascii() and err.rstrip("\n").isprintable()


def test_an_unknown_option_is_shown_harmless(capsys):
    with pytest.raises(SystemExit):
        main(["check", "contract", "x", "--\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [CordonError("\x1b[31mx"), RuntimeError("\x1b[31mx")])
def test_any_error_is_shown_harmless(monkeypatch, capsys, error):
    def raises(path):
        raise error

    monkeypatch.setitem(sys.modules["cordon.cli.sign"]._CHECKS, "contract", raises)
    assert main(["check", "contract", "x"]) == (1 if isinstance(error, CordonError) else 70)
    err = capsys.readouterr().err
    assert "\\x1b[31mx" in err and "\x1b" not in err
