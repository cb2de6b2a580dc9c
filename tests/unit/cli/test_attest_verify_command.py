"""``cordon attest verify``: verdicts and exit codes, what is printed, and what nobody can read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cordon.attest.azure.policy import AzurePolicy
from cordon.attest.dcap.policy import SgxPolicy, TdxPolicy
from cordon.attest.nvgpu.policy import GpuPolicy
from cordon.attest.snp.policy import SnpPolicy
from cordon.attest.verdict import Appraisal, Check
from cordon.cli import main
from cordon.cli.attest.output import combined
from fakes import amd_pki, open_policies

KINDS = ("snp", "tdx", "sgx", "gpu", "gpus", "az-snp", "nras", "maa")


def run(capsys, args, *more):
    """(exit code, JSON object) of a command, which always prints one object with --json."""
    code = main(["attest", "verify", *args, *map(str, more), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out)


def results(said):
    return {check["code"]: check["result"] for check in said["checks"]}


@pytest.fixture
def policy(tmp_path):
    """A function that writes a policy; sections say any but for debug and what is changed in them."""

    def write(*evidence, **changes):
        schemas = {"snp": SnpPolicy, "tdx": TdxPolicy, "sgx": SgxPolicy, "azure": AzurePolicy, "gpu": GpuPolicy}
        sections = {}
        for name, change in changes.items():
            section = open_policies.anything(schemas[name])
            holder = section["policy"] if name == "snp" else section
            if "debug" in holder:
                holder["debug"] = False
            sections[name] = section | change
        path = tmp_path / "policy.yml"
        path.write_text(open_policies.as_yaml(open_policies.policy(*evidence, **sections)))
        return path

    return write


# -- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_genuine_without_a_policy_is_not_checked(trusted, capsys, kind):
    code, said = run(capsys, trusted.verify[kind])
    assert (said["genuine"], said["verdict"], code) == (True, "not_checked", 2), said


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "gpu", "gpus", "az-snp"])
def test_nothing_of_another_vendor_s_is_genuine(evidence, capsys, kind):
    """The same files, and the real vendors' roots."""
    code, said = run(capsys, evidence.verify[kind])
    assert (said["genuine"], said["verdict"], code) == (False, "fail", 1), said


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx"])
def test_a_policy_that_is_met_passes(trusted, policy, capsys, kind):
    code, said = run(capsys, trusted.verify[kind], "--policy", policy(kind, **{kind: {}}))
    assert (said["verdict"], code) == ("pass", 0), said
    assert results(said)["evidence_type"] == "pass"


def test_a_gpu_that_meets_its_policy_passes(trusted, policy, capsys):
    wanted = {"driver_version": ["550.90.07"], "vbios_version": ["96.00.9F.00.01"], "rim": "required", "count": 1}
    path = policy("snp", snp={}, gpu=wanted)
    rims = ("--rim", trusted.files["driver rim"], trusted.files["vbios rim"], "--nonce", trusted.nonce)
    code, said = run(capsys, trusted.verify["gpu"], "--policy", path, *rims)
    assert (said["verdict"], code) == ("pass", 0), said
    code, said = run(capsys, trusted.verify["gpu"], "--policy", path, *rims[:2], "--rim", rims[2], *rims[3:])
    assert code == 0, "--rim may be repeated as well"
    code, said = run(capsys, trusted.verify["gpu"], "--policy", path)
    assert code in (1, 2), "no RIM, no nonce"


REFUSED = [
    ("snp", {"measurement": ["ab" * 48]}, "measurement"),
    ("snp", {"vmpl": [1]}, "vmpl"),
    ("snp", {"host_data": ["cd" * 32]}, "host_data"),
    ("tdx", {"mr_td": ["ab" * 48]}, "mr_td"),
    ("tdx", {"event_log": "required"}, "event_log"),
    ("sgx", {"mr_enclave": ["ab" * 32]}, "mr_enclave"),
]


@pytest.mark.parametrize(("kind", "change", "code"), REFUSED)
def test_a_policy_that_is_not_met_fails(trusted, policy, capsys, kind, change, code):
    got, said = run(capsys, trusted.verify[kind], "--policy", policy(kind, **{kind: change}))
    assert (said["genuine"], said["verdict"], got) == (True, "fail", 1)
    assert [each for each, result in results(said).items() if result == "fail"] == [code]


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "az-snp"])
def test_a_policy_for_another_kind_of_evidence_fails(trusted, policy, capsys, kind):
    other = policy("sgx", sgx={}) if kind != "sgx" else policy("snp", snp={})
    code, said = run(capsys, trusted.verify[kind], "--policy", other)
    assert (results(said)["evidence_type"], code) == ("fail", 1)


def test_gpu_evidence_that_no_policy_wants_fails_and_that_none_looks_at_is_not_checked(trusted, policy, capsys):
    none = policy("snp", snp={})
    code, said = run(capsys, trusted.verify["gpu"], "--policy", none)
    assert (results(said)["evidence_type"], code) == ("fail", 1)
    none.write_text(none.read_text().replace("gpu: none", "gpu: any"))
    code, said = run(capsys, trusted.verify["gpu"], "--policy", none)
    assert (said["genuine"], code) == (True, 2)


def test_a_required_crl_that_is_not_given_is_no_pass(trusted, policy, capsys):
    path = policy("snp", snp={"crl": "required"})
    args = trusted.verify["snp"]
    assert run(capsys, args, "--policy", path)[0] == 0
    at = args.index("--crl")
    assert run(capsys, args[:at] + args[at + 2 :], "--policy", path)[0] in (1, 2)


def test_report_data_is_compared_if_it_is_given(trusted, policy, capsys):
    path = policy("snp", snp={})
    mine = amd_pki.REPORT_DATA.hex()
    assert run(capsys, trusted.verify["snp"], "--policy", path, "--report-data", mine)[0] == 0
    code, said = run(capsys, trusted.verify["snp"], "--policy", path, "--report-data", "00" * 64)
    assert (results(said)["report_data"], code) == ("fail", 1)


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "gpu"])
def test_hex_text_is_the_same_evidence(trusted, tmp_path, capsys, kind):
    args = list(trusted.verify[kind])
    data = (trusted.folder / args[2]).read_bytes()
    text = data.hex()
    for form in (
        text,
        text.upper(),
        f"{text}\n",
        "0x" + text,
        "\n".join(text[i : i + 64] for i in range(0, len(text), 64)),
    ):
        path = tmp_path / "evidence.hex"
        path.write_text(form)
        assert run(capsys, [*args[:2], str(path), *args[3:]])[1]["genuine"] is True


def test_a_chain_may_be_base64_of_pem(trusted, tmp_path, capsys):
    import base64

    args = list(trusted.verify["gpu"])
    chain = tmp_path / "chain.b64"
    chain.write_bytes(base64.encodebytes((trusted.folder / args[4]).read_bytes()))
    assert run(capsys, [*args[:4], str(chain), *args[5:]])[1]["genuine"] is True


@pytest.mark.parametrize("at", ["2026-06-01T02:00:00+02:00", "2026-06-01T00:00:00.5z", "2026-06-01t00:00:00Z"])
def test_times_with_an_offset(trusted, capsys, at):
    assert run(capsys, trusted.verify["snp"], "--at", at)[1]["genuine"] is True


@pytest.mark.parametrize(("kind", "at"), [("snp", "2010-01-01T00:00:00Z"), ("tdx", "2025-12-01T00:00:00Z")])
def test_evidence_from_the_future_fails(trusted, capsys, kind, at):
    assert run(capsys, trusted.verify[kind], "--at", at)[0] == 1


# -- several devices ------------------------------------------------------------------------------------------------


def test_of_several_devices_each_is_named_and_each_has_its_claims(trusted, capsys):
    _, said = run(capsys, trusted.verify["gpus"])
    assert [each["arch"] for each in said["claims"]["devices"]] == ["hopper", "ls10"]
    assert {check["detail"].split(":")[0] for check in said["checks"]} == {"device 0", "device 1"}


def test_the_rims_of_another_device_do_not_count_against_one(trusted, capsys):
    """RIM files of the GPU, given for GPU and switch together."""
    rims = ("--rim", trusted.files["driver rim"], trusted.files["vbios rim"])
    code, said = run(capsys, trusted.verify["gpus"], *rims)
    assert (code, [c for c in said["checks"] if c["result"] == "fail"]) == (2, [])


def test_a_device_that_is_shown_twice_is_no_second_device(trusted, policy, capsys):
    args = ["gpu", "--evidence", trusted.files["twice"], "--at", "2026-06-01T00:00:00Z"]
    code, said = run(capsys, args)
    assert (results(said)["duplicate"], code) == ("fail", 1)
    code, said = run(capsys, args, "--policy", policy("snp", snp={}, gpu={"count": 2}))
    assert results(said)["count"] == "fail"


def test_one_device_where_the_policy_wants_two_fails(trusted, policy, capsys):
    code, said = run(capsys, trusted.verify["gpu"], "--policy", policy("snp", snp={}, gpu={"count": 2}))
    assert (results(said)["count"], code) == ("fail", 1)


def _appraisal(*outcomes):
    checks = tuple(Check(f"c{number}", result, "x", kind) for number, (result, kind) in enumerate(outcomes))
    return Appraisal("nvgpu", checks, {"n": len(outcomes)})


@pytest.mark.parametrize(
    ("devices", "genuine", "verdict"),
    [
        ([[("pass", "genuine")], [("pass", "genuine")]], True, "pass"),
        ([[("pass", "genuine")], [("pass", "policy")]], False, "not_checked"),  # nothing vouches for the second
        ([[("pass", "genuine")], [("not_checked", "genuine")]], False, "not_checked"),
        ([[("pass", "genuine")], [("pass", "genuine"), ("fail", "policy")]], True, "fail"),
        ([[("fail", "genuine")], [("not_checked", "genuine")]], False, "fail"),
    ],
)
def test_of_several_devices_the_worst_counts(devices, genuine, verdict):
    said = combined([_appraisal(*each) for each in devices])
    assert (said["genuine"], said["verdict"]) == (genuine, verdict)
    assert len(said["claims"]["devices"]) == len(devices)


# -- what is printed ------------------------------------------------------------------------------------------------


def test_a_person_gets_a_table_the_verdict_and_what_it_means(trusted, policy, capsys):
    path = policy("snp", snp={"vmpl": [1]})
    assert main(["attest", "verify", *trusted.verify["snp"], "--policy", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert any(line.split()[:2] == ["vmpl", "fail"] for line in lines)
    assert any(line.split()[:2] == ["report_signature", "pass"] for line in lines)
    assert "genuine: yes" in lines
    assert lines[-1].startswith("fail: ")
    assert "its signature was not checked" in out
    assert "\x1b" not in out


def test_colour_on_a_terminal_only(trusted, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    main(["attest", "verify", *trusted.verify["snp"]])
    assert "\x1b[32mpass\x1b[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["attest", "verify", *trusted.verify["snp"]])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_json", [True, False])
def test_output_is_plain_ascii(trusted, capsys, kind, as_json):
    main(["attest", "verify", *trusted.verify[kind], *(["--json"] if as_json else [])])
    out = capsys.readouterr().out
    assert out.isascii()
    assert all(each == "\n" or each.isprintable() for each in out)


def test_a_reader_that_goes_away_does_not_turn_a_fail_into_success(evidence):
    """`cordon attest verify ... | head -0`: the exit code of a failed verdict stays 1."""
    command = [sys.executable, "-m", "cordon.cli", "attest", "verify", *evidence.verify["snp"]]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("kind", ["snp", "tdx", "gpu", "nras", "maa", "az-snp"])
def test_neither_flare_nor_torch_nor_another_verifier_is_loaded(evidence, kind):
    code = f"""
import json, sys
from cordon.cli import main
main(["attest", "verify", *{evidence.verify[kind]!r}])
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not {"nvflare", "torch", "opacus", "monai", "sklearn", "sevsnpmeasure", "requests"} & loaded
    heavy = {"tdx": {"dcap_qvl"}, "gpu": {"lxml", "signxml"}, "nras": {"jwt"}}
    others = set().union(*heavy.values()) - heavy.get(kind, set())
    assert not others & loaded, kind


# -- bad input ------------------------------------------------------------------------------------------------------

FILES = [
    # kind, option
    *(("snp", option) for option in ("--report", "--vek", "--chain", "--crl", "--policy")),
    *(("tdx", option) for option in ("--quote", "--collateral", "--event-log", "--policy")),
    *(("sgx", option) for option in ("--quote", "--collateral", "--policy")),
    *(("gpu", option) for option in ("--report", "--chain", "--rim", "--policy")),
    *(("gpus", option) for option in ("--evidence", "--rim")),
    *(("az-snp", option) for option in ("--report", "--vek", "--chain", "--crl", "--tpm-quote", "--policy")),
    *(("nras", option) for option in ("--token", "--jwks", "--policy")),
    *(("maa", option) for option in ("--token", "--jwks", "--policy")),
]


def _missing(path):
    return path / "none"


def _folder(path):
    return path


def _pipe(path):
    os.mkfifo(path / "pipe")
    return path / "pipe"


def _empty(path):
    (path / "empty").touch()
    return path / "empty"


def _huge(path):
    """1 GiB without a byte on the disk."""
    with open(path / "huge", "wb") as file:
        file.truncate(1 << 30)
    return path / "huge"


def _device(path):
    return "/dev/zero"


def _random(path):
    (path / "random").write_bytes(bytes(range(1, 256)) * 5)
    return path / "random"


def _not_utf8(path):
    (path / "latin").write_bytes("version: é".encode("latin-1"))
    return path / "latin"


def _deep(path):
    (path / "deep").write_bytes(b"[" * 50_000)
    return path / "deep"


BAD = [_missing, _folder, _pipe, _empty, _huge, _device, _random, _not_utf8, _deep]


def _unreadable(capsys, args):
    """Exit 3, one line with a code on stderr, and on stdout an object that calls nothing genuine."""
    assert main(["attest", "verify", *map(str, args), "--json"]) == 3
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["genuine"], said["verdict"], said["checks"]) == (False, "not_checked", [])
    assert err == f"cordon: {said['error']['code']}: {said['error']['detail']}\n"
    assert err.count("\n") == 1
    return said["error"]["code"]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__.strip("_"))
@pytest.mark.parametrize(("kind", "option"), FILES)
def test_a_bad_file(evidence, tmp_path, capsys, kind, option, make):
    args = list(evidence.verify[kind])
    path = str(make(tmp_path))
    if option in args:
        args[args.index(option) + 1] = path
    else:
        args += [option, path]
    code = _unreadable(capsys, args)
    if make in (_missing, _folder, _pipe, _device):
        assert code == "input_unreadable"
    elif make in (_empty, _huge):
        assert code == {"_empty": "input_empty", "_huge": "input_too_large"}[make.__name__]
    else:
        assert code.endswith(("_format", "_version"))


def test_without_json_an_error_is_one_line_and_nothing_else(evidence, capsys):
    args = list(evidence.verify["snp"])
    args[2] = "none"
    assert main(["attest", "verify", *args]) == 3
    out, err = capsys.readouterr()
    assert (out, err) == ("", "cordon: input_unreadable: none: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "gpu"])
@pytest.mark.parametrize("other", ["snp", "tdx", "sgx", "gpu", "gpu evidence", "hcl", "nras", "maa", "vek"])
def test_evidence_of_another_vendor_never_passes(trusted, policy, capsys, kind, other):
    args = list(trusted.verify[kind])
    if other == kind:
        return
    args[2] = trusted.files[other]
    sections = {"snp": {}} if kind == "gpu" else {kind: {}}
    path = policy(*sections, **sections)
    code, said = run(capsys, args, "--policy", path)
    assert code in (1, 3)
    assert (said["genuine"], said["verdict"] == "pass") == (False, False)


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "gpu", "gpus", "az-snp", "nras", "maa"])
def test_truncated_evidence_never_passes(trusted, tmp_path, capsys, kind):
    args = list(trusted.verify[kind])
    data = Path(args[2]).read_bytes().rstrip(b"\0\n")  # an HCL report ends in padding
    path = tmp_path / "cut"
    args[2] = str(path)
    for size in (1, 2, 47, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        code, said = run(capsys, args)
        assert (code in (1, 3), said["genuine"]) == (True, False), size


@pytest.mark.parametrize(
    "at",
    [
        *("2026-06-01", "2026-06-01T00:00:00", "2026-06-01 00:00:00Z", "2026-13-01T00:00:00Z", "now", ""),
        *("2026-06-01T24:00:00Z", "2026-06-01T00:00:60Z", "0001-01-01T00:00:00+23:59", "2026-06-01T00:00Z"),
        *("20260601T000000Z", "2026-W01-1T00:00:00Z", "２０２６-06-01T00:00:00Z", "1780272000"),
    ],
)
def test_a_time_that_is_none(evidence, capsys, at):
    assert _unreadable(capsys, [*evidence.verify["snp"], "--at", at]) == "time_format"


@pytest.mark.parametrize("nonce", ["", "xyz", "abc", "0x00", " 00", "00" * 31, "00" * 33, "٠٠"])
def test_a_nonce_that_is_none(evidence, capsys, nonce):
    assert _unreadable(capsys, [*evidence.verify["gpu"], f"--nonce={nonce}"]) in ("hex_format", "nonce_format")


def test_report_data_of_another_length(evidence, capsys):
    assert _unreadable(capsys, [*evidence.verify["snp"], "--report-data", "00" * 32]) == "hex_format"


BAD_POLICIES = {
    "an absent field": lambda text: text.replace("  vmpl: any\n", ""),
    "an unknown field": lambda text: text.replace("  vmpl: any\n", "  vmpl: any\n  vmpI: any\n"),
    "a field twice": lambda text: text.replace("  vmpl: any\n", "  vmpl: any\n  vmpl: any\n"),
    "another version": lambda text: text.replace("attestation/v2", "attestation/v1"),
    "a prefix": lambda text: text.replace("  measurement: any\n", "  measurement: [abcd]\n"),
    "an alias": lambda text: text + "x: &a [1]\ny: *a\n",
    "no mapping": lambda text: "[]",
    "debug in production": lambda text: text.replace("poc", "production").replace("debug: false", "debug: any"),
}


@pytest.mark.parametrize("change", BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_bad_policy(evidence, policy, capsys, change):
    path = policy("snp", snp={})
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    assert _unreadable(capsys, [*evidence.verify["snp"], "--policy", path]) == "policy_format"


USAGE = [
    [],
    ["snp"],
    ["snp", "--report", "x"],
    ["snp", "--rep", "x", "--vek", "y"],
    ["snp", "--report", "x", "--vek", "y", "--product", "rome"],
    ["gpu"],
    ["gpu", "--report", "x", "--evidence", "y"],
    ["az-snp", "--vek", "x"],
    ["other"],
    ["tdx", "--quote", "x", "--at"],
    ["tdx", "--quote", "x", "stray"],
]


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_usage_errors_are_3_at_every_level(capsys, args, as_json):
    """argparse says 2, which means 'not checked' here."""
    with pytest.raises(SystemExit) as end:
        main(["attest", "verify", *args, *as_json])
    assert end.value.code == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("args", [["attest"], ["attest", "policy"], ["attest", "policy", "snp"], ["attest", "explain"]])
def test_usage_errors_of_the_other_commands(args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 3


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpus", ["--chain", "x"]),
        ("gpu", ["--rim", *["x"] * 17]),
    ],
)
def test_options_that_do_not_go_together(evidence, capsys, kind, more):
    assert _unreadable(capsys, [*evidence.verify[kind], *more]) == "usage"


def test_a_gpu_report_without_its_chain(evidence, capsys):
    assert _unreadable(capsys, ["gpu", "--report", evidence.files["gpu"]]) == "usage"


# -- changed input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_files_never_pass_and_never_break_anything(trusted, tmp_path, capsys, kind, data):
    """One file of the command, whichever, with bytes changed, cut or added."""
    args = list(trusted.verify[kind])
    if kind in ("gpu", "gpus"):
        args += ["--rim", trusted.files["driver rim"], trusted.files["vbios rim"]]
    places = [number for number, each in enumerate(args) if each.startswith(str(trusted.folder))]
    place = data.draw(st.sampled_from(places))
    whole = bytearray(Path(args[place]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "change", "cut", "insert"])):
            case "change":
                whole[at] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        if not whole:
            break
    path = tmp_path / "changed"
    path.write_bytes(whole)
    args[place] = str(path)
    code, said = run(capsys, args)
    assert code in (1, 2, 3)
    assert said["verdict"] != "pass"
    if place == 2 and code == 2 and kind in ("snp", "tdx", "sgx", "gpu"):  # binary evidence, each byte of which counts
        assert bytes(whole) == Path(trusted.verify[kind][2]).read_bytes()
