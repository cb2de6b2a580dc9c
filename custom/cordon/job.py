"""A job as its config files say it (``jobs/<name>/app/config``): typed, strict, read alike by coordinator and sites.

The files are FLARE's: ``config_fed_server.json`` holds the arguments of ``AsyncController``, ``config_fed_client.json``
those of ``DPTrainExecutor``, ``contract.yml`` is the feature contract. Every site gets the same app, so every site can
read the whole plan and judge it before training.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cordon import documents
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.signing import canonical, digest

FILES = ("config_fed_client.json", "config_fed_server.json", "contract.yml")
FLARE_FILES = (".__nvfl_sig.json", ".__nvfl_submitter.crt")  # added by FLARE when it signs a job; not part of the job

TASKS = {"sealed": ("attest", "train"), "masked": ("attest", "train", "secagg")}
"""Privacy mode -> the executor's tasks, in ``config_fed_client.json``."""

T = TypeVar("T")

# Scales that a job may choose. Far outside, float32 rounds: a subnormal clip factor would let one patient's gradient
# through at twice the bound that the noise was made for, and no accountant would see it.
Scale = Annotated[float, Meta(ge=1e-3, le=1e3)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=1e-6, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
RuleName = Literal[
    "weighted_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "centered_clipping",
    "norm_bounding",
]


class ServerOpt(Document, frozen=True, kw_only=True):
    """Server optimiser (Reddi et al. 2021, Algorithm 2) on the aggregated update; ``momentum`` is FedAvgM's.

    Not ``name``: FLARE takes any object with that key in a job's config for a component and refuses it.
    """

    algorithm: Literal["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"]
    lr: Annotated[float, Meta(ge=1e-6, le=1e3)] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    bias_correction: bool = False
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Meta(ge=1e-9, le=1e3)] = 1e-3
    max_step: Scale | None = None

    def __post_init__(self) -> None:
        if self.bias_correction and self.algorithm != "FedAdam":
            raise ValueError(f"bias_correction is FedAdam's: no correction is defined for {self.algorithm}")


class Staleness(Document, frozen=True, kw_only=True):
    """s(tau): how much an update counts that is tau versions late (Xie et al. 2019, section 5.2); s(0) = 1.

    ``polynomial`` (1 + tau)^-a; ``hinge`` 1 up to tau = b, then 1 / (a (tau - b) + 1); ``constant`` 1.
    """

    function: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: Annotated[float, Meta(ge=0, le=100)] = 0.5
    b: Annotated[int, Meta(ge=0, le=1000)] = 0


class PreAggregation(Document, frozen=True, kw_only=True):
    """A step before the rule (``cordon.robust``): nearest-neighbour mixing or bucketing."""

    step: Literal["nnm", "bucketing"]
    args: dict[str, float] = msgspec.field(default_factory=dict)


class Groups(Document, frozen=True, kw_only=True):
    """Masked mode with robustness: sites are divided once per job, by commit and reveal, into groups of at least
    ``size``.

    ``f`` sites may lie; ``drop_outs`` of a group may be away when it opens; ``may_stop`` groups may end for good.
    ``buffer`` then counts groups.
    """

    size: Annotated[int, Meta(ge=3, le=40)]
    f: Annotated[int, Meta(ge=0, le=1000)]
    drop_outs: Annotated[int, Meta(ge=0, le=40)] = 0
    may_stop: Annotated[int, Meta(ge=0, le=1000)] = 0


def threshold(members: int, c: int) -> int:
    """t = floor((K + c) / 2) + 1 shares give a secret back: any two sets of t members of a cohort of K share an honest
    one, so no two survivor sets open (``cordon.secagg``).

    >>> threshold(5, 0), threshold(8, 2)
    (3, 6)
    """
    return (members + c) // 2 + 1


class Masked(Document, frozen=True, kw_only=True):
    """Secure aggregation (``cordon.secagg``): a sum opens with at least ``u_min`` sites, against the coordinator and
    ``c`` sites that collude with it. Without ``groups`` a cohort of ``buffer`` sites makes one version.

    After ``max_aborts`` cohorts, at least one, that opened nothing, a group stops; without groups, the job ends after
    as many in a row.

    ``distributed``: the noise of the plan is drawn as discrete shares after weighting, and accounted in the sum.
    """

    u_min: Annotated[int, Meta(ge=3, le=40)]
    c: Annotated[int, Meta(ge=0, le=38)]
    max_aborts: Annotated[int, Meta(ge=0, le=1000)] = 3
    ring_bits: Literal[32, 64] = 32
    groups: Groups | None = None
    distributed: bool = False
    stage_timeout_s: Positive = 60.0

    def threshold(self, cohort: int) -> int:
        """t of ``cohort`` = K sites."""
        return threshold(cohort, self.c)

    def least(self, cohort: int) -> int:
        """Of ``cohort`` sites, so many must see the sum through for it to open: max(t, u_min)."""
        return max(self.threshold(cohort), self.u_min)


class DPPlan(Document, frozen=True, kw_only=True):
    """One round's mechanism. All are public constants: none may depend on a site's data.

    ``noise_multiplier`` sigma; ``sampling_rate`` q: each patient enters a step with probability q (Poisson);
    ``steps`` noisy steps per round; ``clip_norm`` C: L2 bound of one patient's gradient; ``expected_batch_size`` is the
    public normaliser of a step (never q times the site's size, which would tell the size); ``delta`` is the one that
    epsilon is reported at.
    """

    noise_multiplier: Scale
    sampling_rate: Fraction
    steps: Count
    clip_norm: Scale
    expected_batch_size: Annotated[float, Meta(ge=1, le=1e6)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    unit: Literal["patient"]


class ControllerArgs(Document, frozen=True, kw_only=True):
    """What the coordinator does. ``buffer`` = distinct sites per model version (groups of sites in masked groups).

    ``masked`` is there exactly where ``privacy`` is "masked". ``pre_aggregation`` runs before ``rule``, in this order.
    """

    privacy: Literal["sealed", "masked"]
    rule: RuleName
    server_opt: ServerOpt
    buffer: Annotated[int, Meta(ge=3, le=1000)]
    versions: Count
    rounds_per_site: Count
    norm_bound: Scale
    rule_args: dict[str, float] = msgspec.field(default_factory=dict)
    pre_aggregation: tuple[PreAggregation, ...] = ()
    masked: Masked | None = None
    staleness: Staleness = Staleness()
    max_staleness: Annotated[int, Meta(ge=0)] = 10
    max_faults: Count = 2
    ticket_timeout_s: Positive = 3600.0
    init_seed: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if (self.privacy == "masked") != (self.masked is not None):
            raise ValueError('privacy "masked" wants the arguments masked, and no other privacy mode has them')


class ExecutorArgs(Document, frozen=True, kw_only=True):
    """What a site does in one round. ``learning_rate`` is that of local DP-SGD.

    ``local_parameters``: exact names of parameters that stay at the site (FedBN, Li et al. 2021; personal heads):
    neither sent, masked nor aggregated.
    """

    model: str
    model_args: dict[str, Any]
    contract: Literal["contract.yml"]
    dp: DPPlan
    learning_rate: Annotated[float, Meta(ge=1e-6, le=1e3)]
    engine: Literal["opacus"] = "opacus"
    local_parameters: Annotated[tuple[str, ...], Meta(max_length=1000)] = ()


class _Workflow(Document, frozen=True, kw_only=True):
    id: Literal["controller"]
    path: Literal["cordon.flare.controllers.AsyncController"]
    args: ControllerArgs


class _NoArgs(Document, frozen=True, kw_only=True):
    pass


class _Persistor(Document, frozen=True, kw_only=True):
    id: Literal["persistor"]
    path: Literal["cordon.flare.persistor.SafetensorsPersistor"]
    args: _NoArgs


class _Executor(Document, frozen=True, kw_only=True):
    path: Literal["cordon.flare.executors.DPTrainExecutor"]
    args: ExecutorArgs


class _Tasks(Document, frozen=True, kw_only=True):
    tasks: tuple[Literal["attest", "train", "secagg"], ...]
    executor: _Executor


class _Server(Document, frozen=True, kw_only=True):
    """FLARE's own: seconds between two questions of a site for work. A masked cohort takes four answers of each."""

    task_request_interval: Annotated[float, Meta(ge=0.1, le=60)]


class _ServerConfig(Document, frozen=True, kw_only=True):
    """``config_fed_server.json``: FLARE acts on more keys than these, so these are all there may be."""

    format_version: Literal[2]
    workflows: tuple[_Workflow]
    components: tuple[_Persistor]
    task_data_filters: tuple[()]
    task_result_filters: tuple[()]
    server: _Server | None = None


class _ClientConfig(Document, frozen=True, kw_only=True):
    """``config_fed_client.json``, likewise."""

    format_version: Literal[2]
    executors: tuple[_Tasks]
    components: tuple[()]
    task_data_filters: tuple[()]
    task_result_filters: tuple[()]


class Job(Document, frozen=True, kw_only=True):
    """A parsed job: its name (FLARE's meta.json), both argument sets, and digests of what it is made of."""

    name: str
    controller: ControllerArgs
    executor: ExecutorArgs
    contract: bytes
    contract_digest: str
    digest: str

    @property
    def total_steps(self) -> int:
        """Noisy steps that one site makes in the whole job."""
        return self.controller.rounds_per_site * self.executor.dp.steps


def from_files(name: str, files: Mapping[str, bytes]) -> Job:
    """A job from the bytes of its config files (file name -> content).

    Raises:
        ConfigError: a file is missing, an unexpected file is there, or a file holds anything but the one workflow, the
            persistor and the one executor that a job may use, with arguments in their ranges.
    """
    if set(files) != set(FILES):
        raise ConfigError(
            f"job {name}: app/config must hold exactly {', '.join(FILES)}; got {', '.join(sorted(files))}"
        )
    server = _config(files["config_fed_server.json"], _ServerConfig, f"job {name}: config_fed_server.json")
    client = _config(files["config_fed_client.json"], _ClientConfig, f"job {name}: config_fed_client.json")
    privacy, tasks = server.workflows[0].args.privacy, client.executors[0].tasks
    if tasks != TASKS[privacy]:
        raise ConfigError(f"job {name}: {privacy} wants tasks {', '.join(TASKS[privacy])}; got {', '.join(tasks)}")
    contract = files["contract.yml"]
    return Job(
        name=name,
        controller=server.workflows[0].args,
        executor=client.executors[0].executor.args,
        contract=contract,
        contract_digest=contract_digest(contract),
        digest=digest("cordon/job/v1", *(part for file in FILES for part in (file.encode(), files[file]))),
    )


def contract_digest(data: bytes) -> str:
    """Hex digest of a feature contract's meaning, as policies list it (comments and layout don't count)."""
    tree = documents.parse(data, dict, "contract.yml")
    return digest("cordon/document/v1", canonical(tree))


def from_folder(name: str, config: Path) -> Job:
    """A job from its ``app/config`` folder."""
    if not config.is_dir():
        raise ConfigError(f"{config}: not a folder; a job keeps its files in app/config")
    files = sorted(path for path in config.iterdir() if path.name not in FLARE_FILES)
    return from_files(name, {path.name: documents.read_bytes(path) for path in files})


def from_app_zip(name: str, data: bytes) -> Job:
    """A job from the zipped app that FLARE deploys to a site; sizes are bounded before anything is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            entries = [entry for entry in entries if Path(entry.filename).name not in FLARE_FILES]
            if len(entries) > 64 or sum(entry.file_size for entry in entries) > 4 * documents.MAX_DOCUMENT:
                raise ConfigError(f"job {name}: app is larger than allowed")
            outside = [entry.filename for entry in entries if Path(entry.filename).parent != Path("config")]
            if outside:
                raise ConfigError(
                    f"job {name}: configuration only, but the app also holds {', '.join(sorted(outside)[:5])}"
                )
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
                raise ConfigError(f"job {name}: app is compressed in a way that is not used here")
            names = [Path(entry.filename).name for entry in entries]
            if len(names) != len(set(names)):
                raise ConfigError(f"job {name}: the app holds a file twice")
            return from_files(name, {Path(entry.filename).name: archive.read(entry) for entry in entries})
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        raise ConfigError(f"job {name}: app is not a zip file that can be read: {error}") from error


def _config(data: bytes, schema: type[T], what: str) -> T:
    """A config file of FLARE as ``schema``; what JSON readers understand differently is refused."""
    if len(data) > documents.MAX_DOCUMENT:
        raise ConfigError(f"{what}: larger than the {documents.MAX_DOCUMENT} bytes allowed")
    try:
        tree = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        return msgspec.convert(tree, schema, strict=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # json's and msgspec's own errors are ValueErrors
        raise ConfigError(
            f"{what}: {error} (a job has AsyncController, SafetensorsPersistor and DPTrainExecutor, and nothing else)"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
