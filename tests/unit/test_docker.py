"""Rules that Dockerfiles and compose.yml must hold to, checked without a container engine, and the entrypoint."""

import datetime
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cordon.cli import parser
from cordon.flare import poc_broker

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(path for path in DOCKER.glob("Dockerfile.*") if path.suffix != ".dockerignore")


def instructions(text):
    """[(INSTRUCTION, arguments)]: comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split()[0].upper(), line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line.strip()
    ]


def stages(parsed):
    """The instructions of each stage, FROM included; what stands before the first FROM is left out."""
    found = []
    for name, arguments in parsed:
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, arguments))
    return found


def dockerfile_findings(text, root=ROOT):
    parsed = instructions(text)
    findings = []
    defaults = dict(arguments.split("=", 1) for name, arguments in parsed if name == "ARG" and "=" in arguments)
    names = set()
    for name, arguments in parsed:
        if name == "FROM":
            words = arguments.split()
            image = re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], ""), words[0])
            if image not in names and not re.search(r":\d+\.\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", image):
                findings.append(f"FROM is not pinned: {image}")
            if len(words) == 3:
                names.add(words[2])
        if name == "ADD":
            findings.append(f"ADD fetches and unpacks, use COPY: {arguments}")
        if re.search(r":latest\b", arguments):
            findings.append(f"latest: {arguments}")
        if name == "COPY" and not arguments.startswith("--from="):
            for source in arguments.split()[:-1]:
                if not (root / source).exists() and source != "README.md":
                    findings.append(f"COPY source is not in the repository: {source}")
        if name == "RUN" and re.search(r"(curl|wget)\b.*\|\s*(ba)?sh\b", arguments):
            findings.append("a download is piped into a shell")
    final = stages(parsed)[-1]
    users = [arguments for name, arguments in final if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        findings.append("the final stage runs as root")
    for name, arguments in final:
        if name == "RUN" and re.search(r"\b(pip|uv|apt|apt-get)\b(\s+--?\S+)*\s+install\b", arguments):
            findings.append(f"the final stage installs: {arguments}")
        if name == "COPY" and "--from=" not in arguments and arguments.split()[0].startswith(("custom", ".", "tests")):
            findings.append(f"the final stage copies sources: {arguments}")
        if name in ("ENTRYPOINT", "CMD") and not arguments.startswith("["):
            findings.append(f"{name} goes through a shell")
    for wanted in ("HEALTHCHECK", "ENTRYPOINT"):
        if wanted not in [name for name, _ in final]:
            findings.append(f"the final stage has no {wanted}")
    return findings


def compose_findings(compose, root=ROOT, folder=DOCKER):
    findings = []
    for name, service in compose["services"].items():
        wanted = {
            "read_only": service.get("read_only") is True,
            "cap_drop ALL": service.get("cap_drop") == ["ALL"],
            "no-new-privileges": "no-new-privileges:true" in service.get("security_opt", []),
            "mem_limit": "mem_limit" in service,
            "pids_limit": "pids_limit" in service,
            "tmpfs": ({"/tmp"} if name == "broker" else {"/tmp", "/workspace/startup", "/workspace/local"})
            == {entry.split(":")[0] for entry in service.get("tmpfs", [])},
            "not privileged": not service.get("privileged") and not service.get("cap_add"),
            "own network": service.get("network_mode") is None and bool(service.get("networks")),
            "pinned image": re.search(r":\d+\.\d+\.\d+$", service.get("image", "")) is not None,
        }
        findings += [f"{name}: {what}" for what, held in wanted.items() if not held]
        for volume in service.get("volumes", []):
            if "docker.sock" in volume:
                findings.append(f"{name}: mounts the engine's socket")
            if re.search(r":/etc/cordon-broker(:|$)", volume) and not volume.endswith(":ro"):
                findings.append(f"{name}: the broker could change its own configuration and keys: {volume}")
            if "cordon_broker" in volume and name != "broker":
                findings.append(f"{name}: holds the broker's keys: {volume}")
            if re.search(r":/kit/(startup|local)(:|$)", volume) and not volume.endswith(":ro"):
                findings.append(f"{name}: the kit is mounted writable: {volume}")
            if re.search(r":/workspace/(startup|local)(/|:|$)", volume):
                findings.append(f"{name}: FLARE would run on what the host can change: {volume}")
        findings += [
            f"{name}: port open to the world: {p}" for p in service.get("ports", []) if not p.startswith("127.")
        ]
        build = service.get("build")
        if build and not (folder / build["context"] / build["dockerfile"]).resolve().is_file():
            findings.append(f"{name}: no {build['dockerfile']}")
        if build and (folder / build["context"]).resolve() != root:
            findings.append(f"{name}: the build context is not the repository")
    for name, service in compose["services"].items():
        if name.startswith("hospital"):
            reach = [n for n in service.get("networks", []) if not (compose["networks"].get(n) or {}).get("internal")]
            findings += [f"{name}: network {network} is not internal" for network in reach]
            for other, theirs in compose["services"].items():
                shared = set(service.get("networks", [])) & set(theirs.get("networks", []))
                if other not in (name, "coordinator", "broker") and shared:
                    findings.append(f"{name} reaches {other}")
    met = set(compose["services"]["coordinator"]["networks"]) & set(compose["services"]["broker"]["networks"])
    if met or compose["services"]["broker"].get("ports"):
        findings.append("broker: others than the hospitals reach it")
    return findings


@pytest.fixture
def compose():
    return yaml.safe_load((DOCKER / "compose.yml").read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_holds_to_the_rules(path):
    assert dockerfile_findings(path.read_text()) == []


def test_all_images_are_there():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.broker", "Dockerfile.coordinator", "Dockerfile.site"]


def test_the_broker_image_holds_no_torch_and_starts_the_broker():
    parsed = instructions((DOCKER / "Dockerfile.broker").read_text())
    assert not [arguments for _, arguments in parsed if "torch" in arguments]
    final = dict(stages(parsed)[-1])
    command = json.loads(final["ENTRYPOINT"]) + json.loads(final["CMD"])
    assert command[:4] == ["/opt/cordon/bin/python", "-I", "-m", "cordon.cli"]
    args = parser("broker").parse_args(command[4:])
    assert (args.config, args.json) == (Path("/etc/cordon-broker/broker.yml"), True)
    assert "install -d -o cordon -g cordon -m 0700 /var/lib/cordon-broker" in final["RUN"]


def test_what_the_broker_image_runs_needs_no_torch_and_no_flare():
    code = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "nvflare", "opacus", "monai"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import cordon.broker.tenant, cordon.dp.accounting
import cordon.cli.broker.init, cordon.cli.broker.keep, cordon.cli.broker.serve
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_brokers_health_check_sees_whether_something_listens(monkeypatch):
    final = dict(stages(instructions((DOCKER / "Dockerfile.broker").read_text()))[-1])
    command = [sys.executable, *json.loads(final["HEALTHCHECK"].split("CMD", 1)[1])[1:]]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("BROKER_PORT", str(listener.getsockname()[1]))
        assert subprocess.run(command, timeout=30, check=False).returncode == 0
    assert subprocess.run(command, timeout=30, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (r"^USER .*$", "", "runs as root"),
        (r"^USER .*$", "USER root", "runs as root"),
        (r"^(ARG BASE_IMAGE=\S+python):\S+$", r"\1:latest", "not pinned"),
        (r"^(ARG BASE_IMAGE=\S+python):\S+$", r"\1:3.11", "not pinned"),
        (r"^(USER .*)$", r"\1\nRUN pip --no-cache-dir install cordon", "final stage installs"),
        (r"^(USER .*)$", r"\1\nADD http://example.org/x /x", "ADD"),
        (r"^(USER .*)$", r"\1\nCOPY custom/ /custom", "copies sources"),
        (r"^COPY docker/poc_only.txt", "COPY docker/no_such_file.txt", "not in the repository"),
        (r"^ENTRYPOINT .*$", "ENTRYPOINT startup/start.sh", "through a shell"),
        (r"^HEALTHCHECK", "LABEL a=b #", "no HEALTHCHECK"),
    ],
)
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_broken_dockerfile_is_found(path, old, new, finding):
    broken, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    assert count >= 1
    assert any(finding in found for found in dockerfile_findings(broken))


def test_compose_holds_to_the_rules(compose):
    assert set(compose["services"]) == {"coordinator", "broker", "hospital-a", "hospital-b"}
    assert compose_findings(compose) == []


@pytest.mark.parametrize("key", ["read_only", "cap_drop", "security_opt", "mem_limit", "pids_limit", "tmpfs"])
def test_a_service_without_hardening_is_found(compose, key):
    del compose["services"]["hospital-b"][key]
    assert [found for found in compose_findings(compose) if found.startswith("hospital-b")]


def test_a_hospital_that_reaches_out_is_found(compose):
    compose["services"]["hospital-b"]["networks"] = ["hospital-a", "console"]
    assert {"hospital-b: network console is not internal", "hospital-b reaches hospital-a"} <= set(
        compose_findings(compose)
    )


def test_a_broker_that_the_coordinator_reaches_is_found(compose):
    compose["services"]["broker"]["networks"].append("hospital-a")
    assert "broker: others than the hospitals reach it" in compose_findings(compose)


def test_the_brokers_keys_at_a_hospital_are_found(compose):
    compose["services"]["hospital-a"]["volumes"].append("./kits/cordon_broker:/keys:ro")
    assert any("holds the broker's keys" in found for found in compose_findings(compose))


def test_a_broker_that_can_write_its_configuration_is_found(compose):
    compose["services"]["broker"]["volumes"][0] = "./kits/cordon_broker:/etc/cordon-broker"
    assert any("change its own configuration" in found for found in compose_findings(compose))


def test_a_writable_kit_is_found(compose):
    compose["services"]["coordinator"]["volumes"][-1] = "./kit/local:/kit/local"
    assert any("writable" in found for found in compose_findings(compose))


def test_a_kit_that_flare_reads_from_the_host_is_found(compose):
    compose["services"]["coordinator"]["volumes"][-1] = "./kit/local:/workspace/local:ro"
    assert any("what the host can change" in found for found in compose_findings(compose))


def test_what_the_try_out_mounts_is_what_its_project_makes(compose):
    project = yaml.safe_load((DOCKER / "project.yml").read_text())
    kits = {each["name"]: each for each in project["participants"] if each["type"] != "admin"}
    assert set(compose["services"]) == {*kits, "broker"}
    mounted = [volume for name in kits for volume in compose["services"][name]["volumes"]]
    places = {"startup": "/kit/startup", "local": "/kit/local", "data": "/workspace/data"}
    assert {f"/{name}/{part}:{place}:ro" for name in kits for part, place in places.items()} == {
        volume.split("}")[-1] for volume in mounted if "CORDON_KITS" in volume
    }
    builder = next(each for each in project["builders"] if each["path"].endswith(".CordonBuilder"))
    broker, place = compose["services"]["broker"], builder["args"]["broker"]
    assert broker["hostname"] == place["host"] and place["listen"] == "0.0.0.0"  # noqa: S104 - in its container
    made = f"${{CORDON_KITS}}/../{poc_broker.FOLDER}"
    assert [volume.split(":")[0] for volume in broker["volumes"]] == [made, f"{made}/{poc_broker.STATE}"]
    assert "ports" not in broker and not set(broker["networks"]) & set(compose["services"]["coordinator"]["networks"])
    assert [volume.split(":", 1)[1] for volume in broker["volumes"]] == [
        "/etc/cordon-broker:ro",
        f"/etc/cordon-broker/{poc_broker.STATE}",
    ]
    image = dict(stages(instructions((DOCKER / "Dockerfile.broker").read_text()))[-1])
    assert image["EXPOSE"] == str(place["port"])
    assert f"BROKER_PORT={place['port']}" in image["ENV"]
    server = kits["coordinator"]
    assert compose["services"]["coordinator"]["hostname"] == server["default_host"] == "coordinator"
    assert compose["services"]["coordinator"]["ports"] == [f"127.0.0.1:{server['admin_port']}:{server['admin_port']}"]
    for service in compose["services"].values():  # the kits are POC kits: a production image would not start them
        assert service["build"]["args"] == {"PROFILE": "poc"}
        assert "poc" in service["image"]


def poc_only():
    lines = (DOCKER / "poc_only.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_what_production_leaves_out_exists_in_the_package():
    paths = poc_only()
    assert {"attest/software.py", "demo", "flare/unsafe_poc.py"} <= set(paths)
    package = ROOT / "custom" / "cordon"
    assert [path for path in paths if not (package / path).exists()] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_production_deletes_before_the_wheel_is_built(path):
    parsed = instructions(path.read_text())
    assert ("ARG", "PROFILE=production") in parsed
    run = next(arguments for name, arguments in parsed if name == "RUN" and "pip wheel" in arguments)
    assert 0 < run.index('rm -r "custom/cordon/$path"') < run.index("pip wheel") < run.index("dist/cordon-*.whl")


# --- entrypoint -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entrypoint():
    spec = importlib.util.spec_from_file_location("cordon_docker_entrypoint", DOCKER / "entrypoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_kit(folder, role, names):
    startup = folder / "startup"
    startup.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (startup / f"{role}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    config = {"servers": [{"name": "study", "service": {"target": "coordinator:8002", "scheme": "grpc"}}]}
    (startup / f"fed_{role}.json").write_text(json.dumps(config))
    return folder


NAMES = [(NameOID.COMMON_NAME, "hospital-a"), (NameOID.ORGANIZATION_NAME, "hospital_a")]


def test_the_client_is_started_as_its_own_kit_starts_it(entrypoint, tmp_path):
    arguments = entrypoint.command("client", make_kit(tmp_path, "client", NAMES))
    assert arguments[1:] == (
        f"-u -m nvflare.private.fed.app.client.client_train -m {tmp_path} -s fed_client.json "
        "--set secure_train=true uid=hospital-a org=hospital_a config_folder=config"
    ).split(" ")


def test_the_server_is_started_as_its_own_kit_starts_it(entrypoint, tmp_path):
    arguments = entrypoint.command("server", make_kit(tmp_path, "server", NAMES))
    assert arguments[1:] == (
        f"-u -m nvflare.private.fed.app.server.server_train -m {tmp_path} -s fed_server.json "
        "--set secure_train=true org=hospital_a config_folder=config"
    ).split(" ")


def test_a_kit_of_the_other_role_is_refused(entrypoint, tmp_path):
    kit = make_kit(tmp_path, "client", NAMES)
    with pytest.raises(entrypoint.KitError, match=r"fed_server\.json"):
        entrypoint.command("server", kit)


def test_a_certificate_that_names_no_organisation_is_refused(entrypoint, tmp_path):
    kit = make_kit(tmp_path, "client", NAMES[:1])
    with pytest.raises(entrypoint.KitError, match="expected one"):
        entrypoint.command("client", kit)


HEADER = "  sl  local_address rem_address   st\n"
LISTENS = "   0: 00000000:1F42 00000000:0000 0A\n"
CONNECTED = "   1: 0200000A:C350 0300000A:1F42 01\n"
CLOSING = "   1: 0200000A:C350 0300000A:1F42 06\n"


@pytest.mark.parametrize(
    ("role", "table", "lines", "healthy"),
    [
        ("server", "tcp", LISTENS, True),
        ("server", "tcp6", LISTENS, True),
        ("server", "tcp", CONNECTED, False),
        ("client", "tcp", CONNECTED, True),
        ("client", "tcp6", LISTENS + CONNECTED, True),
        ("client", "tcp", LISTENS, False),
        ("client", "tcp", CLOSING, False),
        ("client", "tcp", "", False),
    ],
)
def test_health_is_read_from_the_connections(entrypoint, tmp_path, role, table, lines, healthy):
    kit = make_kit(tmp_path, role, NAMES)
    (tmp_path / table).write_text(HEADER + lines)
    assert entrypoint.connected(role, kit, tmp_path) is healthy


def test_nothing_is_started_of_a_kit_that_cordon_refuses(entrypoint, tmp_path, monkeypatch, capsys):
    from cordon.errors import SignatureError
    from cordon.flare import kit

    started = []
    mounted, workspace = tmp_path / "kit", tmp_path / "workspace"
    mounted.mkdir()
    workspace.mkdir()
    make_kit(mounted, "client", NAMES)
    monkeypatch.setattr(entrypoint, "KIT", mounted)
    monkeypatch.setattr(entrypoint, "WORKSPACE", workspace)
    monkeypatch.setattr(entrypoint.os, "execve", lambda *arguments: started.append(arguments))
    assert entrypoint.main(["start", "client"]) == 3
    assert "kit/local: No such file" in capsys.readouterr().err
    (mounted / "local").mkdir()
    assert entrypoint.main(["start", "client"]) == 3
    assert "study.yml: cannot be read" in capsys.readouterr().err

    def refuse(root, now):
        raise SignatureError("/etc/cordon/pin.yml: wants study contract")

    monkeypatch.setattr(kit, "load_kit", refuse)
    assert entrypoint.main(["start", "client"]) == 1
    assert "pin.yml: wants study contract" in capsys.readouterr().err

    def missing(root, now):
        raise ImportError("cannot import name 'software' from 'cordon.attest'")

    monkeypatch.setattr(kit, "load_kit", missing)
    assert entrypoint.main(["start", "client"]) == 3
    assert "a production image leaves the POC parts out" in capsys.readouterr().err
    assert not started
    assert not (workspace / "transfer").exists()

    monkeypatch.setattr(kit, "load_kit", lambda root, now: None)
    entrypoint.main(["start", "client"])
    (executable, arguments, variables), *others = started
    assert not others
    assert arguments == entrypoint.command("client", workspace)
    assert executable == arguments[0]
    assert variables["PYTHONSAFEPATH"] == "1"


def test_flare_runs_on_a_copy_that_is_made_anew_and_is_nobody_elses(entrypoint, tmp_path):
    mounted, workspace = tmp_path / "kit", tmp_path / "workspace"
    mounted.mkdir()
    make_kit(mounted, "client", NAMES)
    (mounted / "local" / "mappings").mkdir(parents=True)
    (mounted / "local" / "mappings" / "m.yml").write_text("m")
    (workspace / "local" / "custom").mkdir(parents=True)  # of an earlier start, or of whoever holds the volume
    (workspace / "local" / "custom" / "x.py").write_text("x")
    (workspace / "local" / "privacy.json").symlink_to(tmp_path / "privacy.json")
    (workspace / "attestation.jsonl").write_text("kept")
    entrypoint.copy_kit(mounted, workspace)
    assert [path.name for path in (workspace / "local").rglob("*")] == ["mappings", "m.yml"]
    assert (workspace / "attestation.jsonl").read_text() == "kept"
    (mounted / "local" / "mappings" / "m.yml").write_text("changed after the copy")
    assert (workspace / "local" / "mappings" / "m.yml").read_text() == "m"
    for path in workspace.rglob("*"):
        if path != workspace / "attestation.jsonl":
            assert path.stat().st_mode & 0o077 == 0 or path == workspace / "local", path


@pytest.mark.parametrize("what", ["link in the kit", "pipe in the kit", "link in the workspace"])
def test_a_copy_follows_no_link(entrypoint, tmp_path, what):
    mounted, workspace = tmp_path / "kit", tmp_path / "workspace"
    mounted.mkdir()
    workspace.mkdir()
    make_kit(mounted, "client", NAMES)
    (mounted / "local").mkdir()
    if what == "link in the kit":
        (mounted / "local" / "study.yml").symlink_to("/etc/hostname")
    elif what == "pipe in the kit":
        os.mkfifo(mounted / "local" / "study.yml")
    else:
        (workspace / "local").symlink_to(tmp_path)
    with pytest.raises(entrypoint.KitError, match="link"):
        entrypoint.copy_kit(mounted, workspace)


def test_no_variable_speaks_to_python_or_flare(entrypoint):
    given = {"PATH": "/bin", "CORDON_PIN": "/etc/pin.yml", "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "20"}
    evil = {"FL_LOG_LEVEL": "{}", "NVFLARE_COMM_DRIVER_PATH": "/x", "PYTHONPATH": "/x", "NVFL_RESULT_ROOT": "/x"}
    assert entrypoint.environment({**given, **evil, "PYTHONSAFEPATH": ""}) == {
        **given,
        **{"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    }


def test_wrong_use_of_the_entrypoint_exits_3(entrypoint, capsys):
    assert entrypoint.main(["start", "admin"]) == 3
    assert "usage" in capsys.readouterr().err
