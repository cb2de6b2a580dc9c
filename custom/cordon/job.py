"""A job as its config files say it (``jobs/<name>/app/config``): typed, strict, read alike by coordinator and sites.

The files are FLARE's: ``config_fed_server.json`` holds the arguments of ``AsyncController``, ``config_fed_client.json``
those of ``DPTrainExecutor``, ``contract.yml`` is the feature contract. Every site gets the same app, so every site can
read the whole plan and judge it before training.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from cordon import documents
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.signing import canonical, digest

CONTROLLER_CLASS = "cordon.flare.controllers.AsyncController"
EXECUTOR_CLASS = "cordon.flare.executors.DPTrainExecutor"
FILES = ("config_fed_client.json", "config_fed_server.json", "contract.yml")
FLARE_FILES = (".__nvfl_sig.json", ".__nvfl_submitter.crt")  # added by FLARE when it signs a job; not part of the job

T = TypeVar("T")

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]


class ServerOpt(Document, frozen=True, kw_only=True):
    """Server optimiser (Reddi et al. 2021, Algorithm 2) on the aggregated update.

    Not ``name``: FLARE takes any object with that key in a job's config for a component and refuses it.
    """

    algorithm: Literal["FedAvg", "FedAdam", "FedYogi"]
    lr: Positive = 1.0
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3
    max_step: Positive | None = None


class DPPlan(Document, frozen=True, kw_only=True):
    """One round's mechanism. All are public constants: none may depend on a site's data.

    ``noise_multiplier`` sigma; ``sampling_rate`` q: each patient enters a step with probability q (Poisson);
    ``steps`` noisy steps per round; ``clip_norm`` C: L2 bound of one patient's gradient; ``expected_batch`` is the
    public normaliser of a step (never q times the site's size, which would tell the size); ``delta`` is the one that
    epsilon is reported at.
    """

    noise_multiplier: Positive
    sampling_rate: Fraction
    steps: Count
    clip_norm: Positive
    expected_batch: Positive
    delta: Annotated[float, Meta(gt=0, lt=1)]
    unit: Literal["patient"]


class ControllerArgs(Document, frozen=True, kw_only=True):
    """What the coordinator does. ``buffer`` = distinct sites per model version."""

    privacy: Literal["unsafe_plain"]
    rule: Literal["weighted_mean", "trimmed_mean"]
    server_opt: ServerOpt
    buffer: Annotated[int, Meta(ge=3, le=1000)]
    versions: Count
    rounds_per_site: Count
    norm_bound: Positive
    rule_args: dict[str, float] = msgspec.field(default_factory=dict)
    max_staleness: Annotated[int, Meta(ge=0)] = 10
    max_faults: Count = 2
    ticket_timeout_s: Positive = 3600.0
    init_seed: Annotated[int, Meta(ge=0)] = 0


class ExecutorArgs(Document, frozen=True, kw_only=True):
    """What a site does in one round. ``learning_rate`` is that of local DP-SGD."""

    model: str
    model_args: dict[str, Any]
    contract: Literal["contract.yml"]
    dp: DPPlan
    learning_rate: Positive
    engine: Literal["opacus"] = "opacus"


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
        ConfigError: a file is missing, an unexpected file is there, or a component is not the one this job may use.
    """
    if set(files) != set(FILES):
        raise ConfigError(
            f"job {name}: app/config must hold exactly {', '.join(FILES)}; got {', '.join(sorted(files))}"
        )
    server = _json(files["config_fed_server.json"], "config_fed_server.json")
    client = _json(files["config_fed_client.json"], "config_fed_client.json")
    workflows, executors = server.get("workflows"), client.get("executors")
    if not isinstance(workflows, list) or len(workflows) != 1 or workflows[0].get("path") != CONTROLLER_CLASS:
        raise ConfigError(f"job {name}: config_fed_server.json must have one workflow, {CONTROLLER_CLASS}")
    executor = executors[0].get("executor", {}) if isinstance(executors, list) and len(executors) == 1 else {}
    if executor.get("path") != EXECUTOR_CLASS:
        raise ConfigError(f"job {name}: config_fed_client.json must have one executor, {EXECUTOR_CLASS}")
    contract = files["contract.yml"]
    return Job(
        name=name,
        controller=_args(workflows[0].get("args"), ControllerArgs, f"job {name}: controller"),
        executor=_args(executor.get("args"), ExecutorArgs, f"job {name}: executor"),
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
            return from_files(name, {Path(entry.filename).name: archive.read(entry) for entry in entries})
    except zipfile.BadZipFile as error:
        raise ConfigError(f"job {name}: app is not a zip file") from error


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        tree = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{name}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: want a JSON object")
    return tree


def _args(args: Any, schema: type[T], what: str) -> T:
    try:
        return msgspec.convert(args, schema, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{what}: {error}") from error
