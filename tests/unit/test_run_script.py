"""The `run` script: what it refuses, what it says then, and when it thinks .venv is up to date. Builds nothing."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script as a module, pointed at an empty .venv under tmp_path."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("cordon_run", str(ROOT / "run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("cordon_run", loader))
    loader.exec_module(module)
    venv = tmp_path / ".venv"
    monkeypatch.setattr(module, "VENV", str(venv))
    monkeypatch.setattr(module, "PYTHON", str(venv / "bin" / "python"))
    monkeypatch.setattr(module, "STAMP", str(venv / ".cordon-stamp.json"))
    monkeypatch.setattr(module, "MARK", str(venv / ".cordon-made"))
    monkeypatch.setattr(module, "LOG", str(venv / "setup.log"))
    monkeypatch.delenv("CORDON_TORCH", raising=False)
    monkeypatch.delenv("CORDON_RUN_PYTHON", raising=False)
    return module


def call(*args, **options):
    return subprocess.run([sys.executable, str(ROOT / "run"), *args], capture_output=True, text=True, **options)


# --- use --------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command(run):
    done = call("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", done.stdout, re.MULTILINE)
    assert listed == list(run.COMMANDS)
    assert set(listed) == {"setup", "demo", "test", "test-all", "lint", "bench", "cordon", "shell-env"}


def test_make_targets_are_the_commands(run):
    text = (ROOT / "Makefile").read_text()
    targets = dict(re.findall(r"^([a-z-]+):.*\n\t(.*)$", text, re.MULTILINE))
    del targets["help"]
    # `cordon` needs arguments and `shell-env` is for eval: neither makes sense through make.
    assert targets == {name: f"./run {name}" for name in run.COMMANDS if name not in ("cordon", "shell-env")}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_plain_make_shows_the_targets(run):
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # not as a part of `make test`
    out = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in out.splitlines()} == (set(run.COMMANDS) | {"help"}) - {"cordon", "shell-env"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "usage"),
        (["tset"], "no command 'tset'"),
        (["setup", "now"], "no arguments"),
        (["lint", "x"], "no arguments"),
    ],
)
def test_wrong_use_exits_3(args, says):
    done = call(*args)
    assert done.returncode == 3
    assert says in done.stderr
    assert done.stdout == ""


def test_an_unknown_torch_build_exits_3(run, monkeypatch):
    monkeypatch.setenv("CORDON_TORCH", "rocm")
    with pytest.raises(run.Stop, match="expected cpu or cuda") as stop:
        run.torch_wanted()
    assert stop.value.code == 3


# --- this machine -----------------------------------------------------------------------------------------------------


def test_the_script_parses_on_python_3_6():
    assert ast.parse((ROOT / "run").read_text(), feature_version=(3, 6)).body


@pytest.mark.parametrize(
    ("version", "suits"),
    [((3, 6), False), ((3, 10, 9), False), ((3, 11), True), ((3, 14, 1), True), ((3, 15), False), ((2, 7), False)],
)
def test_which_pythons_suit(run, version, suits):
    assert run.suits(version) is suits


def test_an_old_python_without_another_is_refused(run, monkeypatch):
    monkeypatch.setattr(run, "find_python", lambda: None)
    with pytest.raises(run.Stop, match=r"this is 3\.8") as stop:
        run.use_suitable_python((3, 8, 1), ["demo"])
    assert stop.value.code == 3
    assert "sudo apt-get install -y python3.11 python3.11-venv" in str(stop.value)


def test_an_old_python_hands_over_to_a_newer_one(run, monkeypatch):
    went = []
    monkeypatch.setattr(run, "find_python", lambda: "/somewhere/python3.12")
    monkeypatch.setattr(run.os, "execv", lambda path, argv: went.append((path, argv)))
    monkeypatch.setenv("CORDON_RUN_PYTHON", "")
    run.use_suitable_python((3, 8, 1), ["demo", "--sites", "3"])
    assert went == [("/somewhere/python3.12", ["/somewhere/python3.12", str(ROOT / "run"), "demo", "--sites", "3"])]
    with pytest.raises(run.Stop):  # the one it handed over to never hands over again
        run.use_suitable_python((3, 8, 1), ["demo"])


def test_a_python_that_does_not_start_is_passed_over(run, tmp_path, monkeypatch):
    # pyenv puts a python3.11 on PATH that only says "command not found"
    for name, script in (("python3.11", "exit 127"), ("python3.12", f'exec {sys.executable} "$@"')):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.find_python() == str(tmp_path / "python3.12")


def test_missing_ensurepip_names_the_package(run):
    def which(name):
        return "/usr/bin/apt-get" if name == "apt-get" else None

    with pytest.raises(run.Stop) as stop:
        run.venv_maker("python3", has=lambda name: name != "ensurepip", which=which)
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert str(stop.value).endswith(f"  sudo apt-get install -y {package}")
    assert stop.value.code == 3


@pytest.mark.parametrize("tool", ["uv", "virtualenv"])
def test_missing_ensurepip_falls_back_to(run, tool):
    command = run.venv_maker("/opt/python", has=lambda _: False, which=lambda n: f"/bin/{n}" if n == tool else None)
    assert command[0] == f"/bin/{tool}"
    assert "/opt/python" in command and command[-1] == run.VENV


def test_a_full_disk_is_refused(run):
    with pytest.raises(run.Stop, match=r"about 3 GB .* there are 1\.5 GB") as stop:
        run.check_disk("cpu", 1.5e9)
    assert run.ROOT in str(stop.value)
    run.check_disk("cpu", 4e9)
    with pytest.raises(run.Stop):  # the CUDA build is larger
        run.check_disk("cuda", 4e9)


def test_foreign_packages_stay_out(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    env = run.environment()
    assert "PYTHONPATH" not in env and "PYTHONHOME" not in env
    assert env["PYTHONNOUSERSITE"] == "1"
    assert env["PATH"].split(os.pathsep)[0] == os.path.join(run.VENV, "bin")


# --- torch ------------------------------------------------------------------------------------------------------------


def test_torch_comes_from_local_wheels_first(run):
    text, args, flavour = run.choose_torch("", "torch==9.9", lambda args: "--no-index" in args, "linux")
    assert "--no-index" in args and "--no-deps" in args and flavour == "cpu"
    assert "local" in text


def test_then_from_the_cpu_index_in_exactly_that_build(run):
    asked = []

    def offered(args):
        asked.append(args)
        return run.CPU_INDEX in args

    _, args, flavour = run.choose_torch("", "torch==9.9", offered, "linux")
    # +cpu: an extra index in the user's pip.conf must not slip the CUDA build in
    assert args == ["--no-deps", "--index-url", run.CPU_INDEX, "torch==9.9+cpu"] and flavour == "cpu"
    assert asked[1][:4] == ["--timeout", "8", "--retries", "0"]


def test_then_from_pypi_and_says_what_that_brings(run):
    text, args, flavour = run.choose_torch("", "torch==9.9", lambda args: False, "linux")
    assert args[-1] == "torch==9.9" and "--no-deps" not in args and flavour == "cuda"
    assert "does not answer" in text and "CUDA build" in text


def test_cuda_asks_nobody_else(run):
    _, args, flavour = run.choose_torch("cuda", "torch==9.9", lambda args: pytest.fail("asked"), "linux")
    assert args[-1] == "torch==9.9" and flavour == "cuda"


def test_a_torch_that_is_there_stays(run, monkeypatch):
    monkeypatch.setattr(run, "torch_inside", lambda: ("2.9.1+cu128", "cuda"))
    monkeypatch.setattr(run, "pip", lambda args: pytest.fail("pip was called"))
    assert run.install_torch({}) == "cuda"


# --- the stamp --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(run, tmp_path, monkeypatch):
    """A copy of the files that decide, and a .venv that claims to be complete."""
    (tmp_path / "requirements").mkdir()
    for name in run.LAYERS["dev"]:
        shutil.copy(ROOT / name, tmp_path / name)
    layer_key = run.layer_key
    monkeypatch.setattr(run, "layer_key", lambda layer: layer_key(layer, root=str(tmp_path)))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    Path(run.MARK).write_text(run.made_by())
    run.write_stamp({"runtime": run.layer_key("runtime"), "dev": run.layer_key("dev"), "torch": "cpu"})
    return tmp_path


def fresh(run, *layers):
    return run.up_to_date(layers or ("runtime", "dev"), run.read_stamp())


def test_a_complete_venv_is_up_to_date(run, tree):
    assert fresh(run)


@pytest.mark.parametrize(
    ("name", "runtime_too"),
    [
        ("pyproject.toml", True),
        ("requirements/torch.txt", True),
        ("requirements/runtime.txt", True),
        ("requirements/dev.txt", False),
    ],
)
def test_a_changed_file_asks_for_setup(run, tree, name, runtime_too):
    with open(tree / name, "a") as file:
        file.write("# changed\n")
    assert not fresh(run, "dev")
    assert fresh(run, "runtime") is not runtime_too


def test_another_python_asks_for_setup(run, tmp_path):
    assert run.layer_key("runtime", version=(3, 11)) != run.layer_key("runtime", version=(3, 12))
    assert run.layer_key("runtime", version=(3, 11, 2)) == run.layer_key("runtime", version=(3, 11, 7))


def test_a_missing_layer_asks_for_setup(run, tree):
    run.write_stamp({"runtime": run.layer_key("runtime"), "torch": "cpu"})
    assert fresh(run, "runtime") and not fresh(run, "dev")


def test_a_removed_interpreter_asks_for_setup(run, tree):
    Path(run.PYTHON).unlink()
    assert not fresh(run)


def test_a_moved_repository_asks_for_setup(run, tree):
    Path(run.MARK).write_text("python 3.11 in /where/it/was/.venv\n")
    assert not fresh(run)


def test_asking_for_another_torch_build_asks_for_setup(run, tree, monkeypatch):
    monkeypatch.setenv("CORDON_TORCH", "cpu")
    assert fresh(run)
    monkeypatch.setenv("CORDON_TORCH", "cuda")
    assert not fresh(run)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"runtime": "0"}'])
def test_a_broken_stamp_asks_for_setup(run, tree, text):
    Path(run.STAMP).write_text(text)
    assert not fresh(run)


def test_a_missing_requirements_file_exits_3(run, tmp_path):
    with pytest.raises(run.Stop, match=r"cannot read pyproject\.toml") as stop:
        run.layer_key("runtime", root=str(tmp_path / "nowhere"))
    assert stop.value.code == 3


def test_a_venv_that_is_not_ours_is_not_wiped(run, tmp_path):
    precious = tmp_path / ".venv" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(run.Stop, match="not made by this script"):
        run.make_venv({})
    assert precious.exists()


def test_a_failed_step_shows_the_end_of_the_log(run, tmp_path):
    (tmp_path / ".venv").mkdir()
    Path(run.LOG).write_text("".join(f"line {n}\n" for n in range(30)))
    with pytest.raises(run.Stop) as stop:
        run.step("installing things", lambda: False)
    assert stop.value.code == 70
    assert "line 10\n" in str(stop.value) and "line 9\n" not in str(stop.value)
    assert "run the same command again" in str(stop.value)
