"""A job's author writes what he likes into the config. What FLARE could act on beside the one plan is refused unread.

Every site parses a job by ``job.from_app_zip`` before anything is deployed and by ``job.from_folder`` before anything
runs; both end in ``job.from_files``.
"""

import io
import json
import zipfile
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cordon import job as jobs
from cordon.errors import ConfigError, CordonError
from cordon.flare.deployer import check
from cordon.flare.kit import load_kit
from fakes.in_process import job_files

SERVER, CLIENT = "config_fed_server.json", "config_fed_client.json"
EVIL = "subprocess.Popen"
EVIL_COMPONENT = {"id": "x", "path": EVIL, "args": {"args": ["true"]}}
NAMED_COMPONENT = {"id": "x", "name": "Popen", "args": {}}
HARMLESS_COMPONENT = {"id": "x", "path": "cordon.flare.persistor.SafetensorsPersistor", "args": {}}
FILTER = {"tasks": ["train"], "filters": [{"path": "nvflare.app_common.filters.svt_privacy.SVTPrivacy", "args": {}}]}


def _tree(side):
    return json.loads(job_files()[side])


def _refused(files, match=None):
    with pytest.raises(ConfigError, match=match) as refused:
        jobs.from_files("oncology", files)
    assert len(str(refused.value)) < 4000


def _at(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree, path[-1]


def _changed(side, path, value):
    tree = _tree(side)
    place, key = _at(tree, path)
    if isinstance(place, list) and key == len(place):
        place.append(value)
    else:
        place[key] = value
    return {**job_files(), side: json.dumps(tree).encode()}


CONTROLLER, EXECUTOR = ("workflows", 0), ("executors", 0, "executor")


def test_the_job_as_it_is_is_accepted(made_kits):
    check(load_kit(made_kits / "hospital-a", datetime.now(UTC)), jobs.from_files("oncology", job_files()))


@pytest.mark.parametrize(
    ("side", "path", "value"),
    [
        # one more component, filter, workflow, executor
        (SERVER, ("components", 1), EVIL_COMPONENT),
        (SERVER, ("components", 1), HARMLESS_COMPONENT),
        (SERVER, ("components", 0), EVIL_COMPONENT),
        (SERVER, ("components",), []),
        (CLIENT, ("components", 0), EVIL_COMPONENT),
        (CLIENT, ("components", 0), HARMLESS_COMPONENT),
        (CLIENT, ("components", 0), NAMED_COMPONENT),
        *[(side, (f"task_{what}_filters", 0), FILTER) for side in (SERVER, CLIENT) for what in ("data", "result")],
        (SERVER, ("workflows", 1), {"id": "y", "path": "cordon.flare.controllers.AsyncController", "args": {}}),
        (SERVER, ("workflows",), []),
        (CLIENT, ("executors", 1), {"tasks": ["x"], "executor": {"path": EVIL, "args": {}}}),
        (CLIENT, ("executors",), []),
        # another class, or one found in another way
        *[
            (side, (*place, "path"), path)
            for side, place in ((SERVER, CONTROLLER), (CLIENT, EXECUTOR), (SERVER, ("components", 0)))
            for path in (
                EVIL,
                "cordon.flare.executors.",
                "cordon.flare.executors",
                "cordon.flare.executors.time.sleep",
                "cordon.flare.executors.Executor",
                "cordon.flare.executors.DPTrainExecutor.execute",
                " cordon.flare.executors.DPTrainExecutor",
                "cordon.flare.executors.dptrainexecutor",
                "nvflare.app_common.workflows.fedavg.FedAvg",
                ["cordon.flare.executors.DPTrainExecutor"],
                None,
                7,
            )
        ],
        *[
            (side, (*place, key), EVIL)
            for side, place in ((SERVER, CONTROLLER), (CLIENT, EXECUTOR), (SERVER, ()), (CLIENT, ()))
            for key in ("class_path", "name", "class_name", "config_type", "lazy_instantiate")
        ],
        # other tasks: a task that our executor does not know, or one for somebody else
        (CLIENT, ("executors", 0, "tasks"), ["*"]),
        (CLIENT, ("executors", 0, "tasks"), ["attest", "train", "validate"]),
        (CLIENT, ("executors", 0, "tasks"), []),
        (CLIENT, ("executors", 0, "tasks"), "train"),
        # keys that FLARE knows and we do not
        *[
            (side, (key,), value)
            for side in (SERVER, CLIENT)
            for key, value in (
                ("handlers", [EVIL_COMPONENT]),
                ("task_filters", []),
                ("servers", []),
                ("heart_beat_timeout", 1),
                ("server", {}),
                ("server", {"task_request_interval": 1e-6}),
                ("server", {"task_request_interval": 1.0, "heart_beat_timeout": 1}),
                ("variables", {"x": "y"}),
                ("x", {"path": EVIL}),
            )
        ],
        (SERVER, ("format_version",), 1),
        (SERVER, ("format_version",), "2"),
        (SERVER, (*CONTROLLER, "id"), "../../x"),
        # shapes
        (SERVER, ("workflows",), {}),
        (SERVER, ("workflows",), ["x"]),
        (SERVER, ("workflows",), [None]),
        (SERVER, ("workflows",), "x"),
        (CLIENT, ("executors",), [None]),
        (CLIENT, ("executors",), [{"executor": "x"}]),
        (CLIENT, ("executors",), {"0": 1}),
        (CLIENT, (*EXECUTOR, "args"), None),
        (CLIENT, (*EXECUTOR, "args"), []),
        (SERVER, (*CONTROLLER, "args"), "args"),
    ],
)
def test_whatever_else_flare_would_act_on(side, path, value):
    _refused(_changed(side, path, value))


@pytest.mark.parametrize("side", [SERVER, CLIENT])
@pytest.mark.parametrize("key", ["workflows", "executors", "components", "task_result_filters", "format_version"])
def test_a_key_left_out(side, key):
    tree = _tree(side)
    if tree.pop(key, None) is not None:
        _refused({**job_files(), side: json.dumps(tree).encode()})


NUMBERS = [
    (SERVER, (*CONTROLLER, "args", name))
    for name in ("norm_bound", "ticket_timeout_s", "buffer", "versions", "rounds_per_site", "max_faults")
] + [
    (SERVER, (*CONTROLLER, "args", "server_opt", "lr")),
    (SERVER, (*CONTROLLER, "args", "server_opt", "max_step")),
    (CLIENT, (*EXECUTOR, "args", "learning_rate")),
    *[
        (CLIENT, (*EXECUTOR, "args", "dp", name))
        for name in ("noise_multiplier", "sampling_rate", "steps", "clip_norm", "expected_batch_size", "delta")
    ],
]


@pytest.mark.parametrize("value", [0, -1, 1e300, 10**400, float("nan"), float("inf"), "1", None, True, [1], {}])
@pytest.mark.parametrize(("side", "path"), NUMBERS, ids=[str(path[-1]) for _, path in NUMBERS])
def test_numbers_out_of_every_range(side, path, value):
    if value is None and path[-1] == "max_step":
        return  # no bound at all is one of its values
    _refused(_changed(side, path, value))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "1_000", "01", "+1", "'1'", "1,"])
def test_numbers_that_are_not_json(literal):
    data = job_files()[CLIENT].replace(b'"learning_rate": 1.0', b'"learning_rate": ' + literal.encode())
    assert literal.encode() in data
    _refused({**job_files(), CLIENT: data})


@pytest.mark.parametrize("value", [1e7, 1e38, 1e-320 * 0])
def test_extreme_learning_rates(value):
    _refused(_changed(CLIENT, (*EXECUTOR, "args", "learning_rate"), value))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"path": "cordon', b'"path": "subprocess.Popen", "path": "cordon'),
        (b'"noise_multiplier": 6.0', b'"noise_multiplier": 0.1, "noise_multiplier": 6.0'),
        (b'"noise_multiplier": 6.0', b'"noise_multiplier": 6.0, "noise_multipli\\u0065r": 6.0'),
        (b'"executors":', b'"executors": [], "executors":'),
    ],
)
def test_a_key_twice_is_two_meanings(old, new):
    data = job_files()[CLIENT]
    assert old in data
    _refused({**job_files(), CLIENT: data.replace(old, new, 1)}, "twice")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"// comment\n{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format_version": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b" " * (2 * 1024 * 1024),
    ],
    ids=lambda data: repr(data[:12]),
)
@pytest.mark.parametrize("side", [SERVER, CLIENT])
def test_what_is_no_config_at_all(side, data):
    _refused({**job_files(), side: data})


@pytest.mark.parametrize(
    "name",
    ["config_fed_server.conf", "config_fed_client.yml", "config_exchange.json", "evil.py", "x.so", "custom", "../x"],
)
def test_another_file(name):
    _refused({**job_files(), name: b"{}"}, "must hold exactly")


def test_a_file_left_out():
    for name in jobs.FILES:
        files = job_files()
        del files[name]
        _refused(files, "must hold exactly")


@pytest.mark.parametrize(
    "contract",
    [
        b"!!python/object/apply:os.system [true]",
        b"a: &x [1]\nb: *x",
        b"a: 1\na: 2",
        b"\x00",
        b"center: .nan",
        b"",
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_a_contract_that_does_more_than_say(contract):
    with pytest.raises(CordonError):
        job = jobs.from_files("oncology", {**job_files(), "contract.yml": contract})
        from cordon.flare import plan

        plan.feature_contract(job)


# -- what parses and still is not allowed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {"path": EVIL, "args": {"args": ["true"]}}},
        {"model_args": {"hidden_channels": {"path": EVIL}}},
        {"model_args": {"hidden_channels": [10**9]}},
        {"model_args": {"hidden_channels": [512] * 500}},
        {"model_args": {"dropout": 0.5}},
        {"model": "torch.load"},
        {"model": "FullyConnectedNet "},
        {"model": ""},
    ],
)
def test_a_model_beyond_the_closed_table(made_kits, change):
    kit = load_kit(made_kits / "hospital-a", datetime.now(UTC))
    with pytest.raises(CordonError):
        check(kit, jobs.from_files("oncology", job_files(executor=change)))


@pytest.mark.parametrize(
    "change", [{"engine": "none"}, {"engine": "pickle"}, {"contract": "/etc/passwd"}, {"contract": "../contract.yml"}]
)
def test_another_engine_or_contract_file(change):
    _refused(job_files(executor=change))


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": "none"},
        {"privacy": "unsafe_plain"},
        {"privacy": "masked"},
        {"rule": "os.system"},
        {"rule_args": {"path": EVIL}},
        {"server_opt": {"algorithm": "SGD"}},
        {"server_opt": {"algorithm": "FedYogi", "bias_correction": True}},
        {"server_opt": {"algorithm": "FedAvg", "name": "x"}},
        {"persistor_id": "x"},
        {"ignore_result_error": False},
        {"buffer": 2},
    ],
)
def test_another_controller(change):
    _refused(job_files(change))


# -- the zip --------------------------------------------------------------------------------------------------------


def _zip(entries, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def _honest():
    return [(f"config/{name}", data) for name, data in job_files().items()]


def test_the_honest_zip_is_read():
    assert jobs.from_app_zip("oncology", _zip(_honest())) == jobs.from_files("oncology", job_files())
    signed = [*_honest(), (".__nvfl_sig.json", b"{}"), ("config/.__nvfl_submitter.crt", b"x")]
    assert jobs.from_app_zip("oncology", _zip(signed)) == jobs.from_files("oncology", job_files())


@pytest.mark.parametrize(
    "name",
    [
        *("custom/evil.py", "config/custom/evil.py", "evil.py", "../evil.py", "/tmp/evil.py", "config/../evil.py"),
        *("config/config_fed_server.conf", "config\\evil.json", "Config/contract.yml", "config/x/../evil.json"),
        "config/.hidden.py",
    ],
)
def test_anything_beside_the_config(name):
    with pytest.raises(ConfigError):
        jobs.from_app_zip("oncology", _zip([*_honest(), (name, b"import os")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["config/config_fed_client.json", "config/./config_fed_client.json"])
def test_a_file_twice_in_the_zip(name):
    """Which of two is judged and which runs would be up to the reader."""
    with pytest.raises(ConfigError, match="twice"):
        jobs.from_app_zip("oncology", _zip([(name, job_files(executor={"learning_rate": 0.5})[CLIENT]), *_honest()]))


def test_a_zip_bomb():
    bomb = _zip([*_honest()[:-1], ("config/contract.yml", b"\0" * (64 * 1024 * 1024))])
    assert len(bomb) < 1024 * 1024
    with pytest.raises(ConfigError, match="larger than allowed"):
        jobs.from_app_zip("oncology", bomb)


def test_very_many_files():
    with pytest.raises(ConfigError, match="larger than allowed"):
        jobs.from_app_zip("oncology", _zip([*_honest(), *((f"config/{n}", b"") for n in range(100))]))


GOOD = {kind: _zip(_honest(), kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)}


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2**20), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_zip_is_refused_or_the_same_job(kind, at, flip):
    spoilt = bytearray(GOOD[kind])
    spoilt[at % len(spoilt)] ^= flip
    try:
        job = jobs.from_app_zip("oncology", bytes(spoilt))
    except ConfigError:
        return
    assert job == jobs.from_files("oncology", job_files())


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression(kind):
    with pytest.raises(ConfigError, match="compressed"):
        jobs.from_app_zip("oncology", _zip(_honest(), kind))


@pytest.mark.parametrize("part", [0, 1, 100])
def test_a_zip_cut_short(part):
    with pytest.raises(ConfigError, match="not a zip"):
        jobs.from_app_zip("oncology", GOOD[zipfile.ZIP_DEFLATED][:part])


def test_an_encrypted_zip():
    data = bytearray(_zip(_honest()))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" of every entry
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            data[at + offset] |= 1
    with pytest.raises(ConfigError):
        jobs.from_app_zip("oncology", bytes(data))


# -- what FLARE builds for anybody ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oncology-2", "", "../oncology", "oncology\n", "ONCOLOGY"])
def test_a_job_of_another_name(made_kits, name):
    kit = load_kit(made_kits / "hospital-a", datetime.now(UTC))
    with pytest.raises(CordonError, match="job_not_allowed"):
        check(kit, jobs.from_files(name, job_files()))


def test_a_folder_with_a_folder_in_it(tmp_path):
    for name, data in job_files().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "custom").mkdir()
    with pytest.raises(ConfigError):
        jobs.from_folder("oncology", tmp_path)
