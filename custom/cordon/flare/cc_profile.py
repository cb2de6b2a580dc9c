"""``cc_config/*.yml``: what a participant's confidential environment is and which classes a job may use there.

The keys are FLARE's (``nvflare.lighter.cc_provision.cc_constants``), read strictly. FLARE's own builder goes on without
confidential computing when such a file is missing or wrong; here that stops provisioning.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.documents import Document
from cordon.errors import ConfigError

REQUIRED_CLASSES = (
    "cordon.flare.controllers.AsyncController",
    "cordon.flare.executors.DPTrainExecutor",
    "cordon.flare.persistor.SafetensorsPersistor",
)
_CLASS_PATH = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*")
_EVIDENCE = {"software": "software", "amd_sev_snp": "snp", "intel_tdx": "tdx"}


class AttestationConfig(Document, frozen=True, kw_only=True):
    """``check_frequency``: seconds between looks at whose lease is due. ``policy``: path, beside the cc_config."""

    policy: str
    check_frequency: Annotated[float, Meta(ge=0.5, le=600)]


class CCConfig(Document, frozen=True, kw_only=True):
    """One profile. ``software`` is Cordon's own value, for POC: no hardware, evidence of the software TEE."""

    compute_env: Literal["onprem_cvm", "software"]
    cc_cpu_mechanism: Literal["amd_sev_snp", "intel_tdx", "software"]
    cc_gpu_mechanism: Literal["nvidia_cc"] | None
    cc_attestation: AttestationConfig
    class_allow_list: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100)]

    def __post_init__(self) -> None:
        if (self.compute_env == "software") != (self.cc_cpu_mechanism == "software"):
            raise ValueError("compute_env software and cc_cpu_mechanism software go together")

    @property
    def evidence(self) -> str:
        """The evidence type that this environment makes."""
        return _EVIDENCE[self.cc_cpu_mechanism]


def load(path: Path) -> CCConfig:
    """The profile at ``path``; its classes exist and its attestation policy can be read.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    config = documents.load(path, CCConfig)
    for entry in config.class_allow_list:
        _check_class(entry, path)
    missing = [entry for entry in REQUIRED_CLASSES if entry not in config.class_allow_list]
    if missing:
        raise ConfigError(f"{path}: class_allow_list lacks {', '.join(missing)}: no Cordon job could run")
    if len(set(config.class_allow_list)) != len(config.class_allow_list):
        raise ConfigError(f"{path}: class_allow_list names a class twice")
    documents.load(policy_path(path, config), AttestationPolicy)
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
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigError(f"{path}: class_allow_list: {entry!r} cannot be imported: {error}") from error
    if not isinstance(found, type) or found.__module__ != module_name:
        raise ConfigError(f"{path}: class_allow_list: {module_name} defines no class {class_name}")
