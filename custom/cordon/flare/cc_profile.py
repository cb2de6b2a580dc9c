"""``cc_config/*.yml``: what a participant's confidential environment is and which classes a job may use there.

The keys are FLARE's (``nvflare.lighter.cc_provision.cc_constants``), read strictly. FLARE's own builder goes on without
confidential computing when such a file is missing or wrong; here that stops provisioning.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.documents import Document
from cordon.errors import ConfigError
from cordon.flare.authorizers import DEVICES

REQUIRED_CLASSES = (
    "cordon.flare.controllers.AsyncController",
    "cordon.flare.executors.DPTrainExecutor",
    "cordon.flare.persistor.SafetensorsPersistor",
)
_CLASS_PATH = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*")
_EVIDENCE = {
    ("software", "software"): "software",
    ("onprem_cvm", "amd_sev_snp"): "snp",
    ("onprem_cvm", "intel_tdx"): "tdx",
    ("azure_cvm", "amd_sev_snp"): "az-snp",
    ("azure_cvm", "intel_tdx"): "az-tdx",
    ("onprem_enclave", "intel_sgx"): "sgx",
}
"""(compute_env, cc_cpu_mechanism) -> the evidence type that it makes."""


class AttestationConfig(Document, frozen=True, kw_only=True):
    """``check_frequency``: seconds between looks at whose lease is due. ``policy``: path, beside the cc_config."""

    policy: str
    check_frequency: Annotated[float, Meta(ge=0.5, le=600)]


class CCConfig(Document, frozen=True, kw_only=True):
    """One profile. ``software`` is Cordon's own value, for POC: no hardware, evidence of the software TEE.

    ``onprem_enclave`` and ``intel_sgx`` are Cordon's own as well: a key broker in an SGX enclave. It is no FLARE
    participant and runs no job, so its ``class_allow_list`` is empty. ``evidence_device``: where the evidence is taken
    (``cordon.flare.devices``).
    """

    compute_env: Literal["onprem_cvm", "azure_cvm", "onprem_enclave", "software"]
    cc_cpu_mechanism: Literal["amd_sev_snp", "intel_tdx", "intel_sgx", "software"]
    cc_gpu_mechanism: Literal["nvidia_cc"] | None
    evidence_device: Literal["tsm", "sev-guest", "vtpm", "gramine", "software"]
    cc_attestation: AttestationConfig
    class_allow_list: Annotated[tuple[str, ...], Meta(max_length=100)]

    def __post_init__(self) -> None:
        if (self.compute_env, self.cc_cpu_mechanism) not in _EVIDENCE:
            known = "; ".join(" with ".join(pair) for pair in _EVIDENCE)
            raise ValueError(f"{self.compute_env} with {self.cc_cpu_mechanism} is none of: {known}")
        if self.evidence_device not in DEVICES[self.evidence]:
            wanted = " or ".join(DEVICES[self.evidence])
            raise ValueError(f"evidence_device {self.evidence_device} makes no {self.evidence} evidence: want {wanted}")

    @property
    def evidence(self) -> str:
        """The evidence type that this environment makes."""
        return _EVIDENCE[self.compute_env, self.cc_cpu_mechanism]

    @property
    def runs_jobs(self) -> bool:
        """Whether a FLARE participant can have this profile."""
        return self.compute_env != "onprem_enclave"


def load(path: Path) -> CCConfig:
    """The profile at ``path``; its classes exist and its attestation policy can be read.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    config = documents.load(path, CCConfig)
    for entry in config.class_allow_list:
        _check_class(entry, path)
    missing = [entry for entry in REQUIRED_CLASSES if entry not in config.class_allow_list]
    if not config.runs_jobs:
        if config.class_allow_list:
            raise ConfigError(f"{path}: class_allow_list: a key broker runs no job: want []")
    elif missing:
        raise ConfigError(f"{path}: class_allow_list lacks {', '.join(missing)}: no Cordon job could run")
    if config.runs_jobs and (more := [entry for entry in config.class_allow_list if entry not in REQUIRED_CLASSES]):
        raise ConfigError(f"{path}: class_allow_list: no Cordon job uses {', '.join(more)}: no kit would start with it")
    if len(set(config.class_allow_list)) != len(config.class_allow_list):
        raise ConfigError(f"{path}: class_allow_list names a class twice")
    policy = documents.load(policy_path(path, config), AttestationPolicy)
    if config.cc_gpu_mechanism is not None and policy.gpu == "none":
        raise ConfigError(f"{path}: has GPUs, and {policy_path(path, config).name} refuses evidence of GPUs")
    return config


def policy_path(path: Path, config: CCConfig) -> Path:
    """Where the attestation policy of the profile at ``path`` lies."""
    return (path.parent / config.cc_attestation.policy).resolve()


def _check_class(entry: str, path: Path) -> None:
    """ConfigError unless ``entry`` is the exact path of a class, in the module that defines it.

    FLARE lets an entry ending in "." admit every name below it, whatever a module merely imports included, so an entry
    that is no class would open more than it says.
    """
    if not _CLASS_PATH.fullmatch(entry):
        raise ConfigError(f"{path}: class_allow_list: {entry!r} is not the full path of one class")
    module_name, _, class_name = entry.rpartition(".")
    try:
        spec = importlib.util.find_spec(module_name)
    except ImportError as error:
        raise ConfigError(f"{path}: class_allow_list: {entry!r} cannot be found: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"{path}: class_allow_list: {entry!r} cannot be found: no module {module_name}")
    tree = ast.parse(Path(spec.origin).read_bytes())  # read, not run: importing it would load torch
    if class_name not in [each.name for each in tree.body if isinstance(each, ast.ClassDef)]:
        raise ConfigError(f"{path}: class_allow_list: {module_name} defines no class {class_name}")
