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

T = TypeVar("T")

# Scales that a job may choose. Far outside, float32 rounds: a subnormal clip factor would let one patient's gradient
# through at twice the bound that the noise was made for, and no accountant would see it.
Scale = Annotated[float, Meta(ge=1e-3, le=1e3)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=1e-6, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]


class ServerOpt(Document, frozen=True, kw_only=True):
    """Server optimiser (Reddi et al. 2021, Algorithm 2) on the aggregated update.

    Not ``name``: FLARE takes any object with that key in a job's config for a component and refuses it.
    """

    algorithm: Literal["FedAvg", "FedAdam", "FedYogi"]
    lr: Annotated[float, Meta(ge=1e-6, le=1e3)] = 1.0
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Meta(ge=1e-9, le=1e3)] = 1e-3
    max_step: Scale | None = None


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
    """What the coordinator does. ``buffer`` = distinct sites per model version."""

    privacy: Literal["sealed"]
    rule: Literal["weighted_mean", "trimmed_mean"]
    server_opt: ServerOpt
    buffer: Annotated[int, Meta(ge=3, le=1000)]
    versions: Count
    rounds_per_site: Count
    norm_bound: Scale
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
    learning_rate: Annotated[float, Meta(ge=1e-6, le=1e3)]
    engine: Literal["opacus"] = "opacus"


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
    tasks: tuple[Literal["attest"], Literal["train"]]
    executor: _Executor


class _ServerConfig(Document, frozen=True, kw_only=True):
    """``config_fed_server.json``: FLARE acts on more keys than these, so these are all there may be."""

    format_version: Literal[2]
    workflows: tuple[_Workflow]
    components: tuple[_Persistor]
    task_data_filters: tuple[()]
    task_result_filters: tuple[()]


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
