"""A version that was made: measured on the study's reference set, kept sealed to its release right, written down."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel
from safetensors.numpy import save as save_safetensors

from cordon import documents, messages, models, sealed_model
from cordon.asyncfl.records import Version
from cordon.data.contract import FeatureContract
from cordon.data.reference import read_reference
from cordon.errors import ConfigError
from cordon.evaluation import auc_and_accuracy
from cordon.flare import persistor, plan
from cordon.flare.kit import Kit
from cordon.job import Job
from cordon.params import Layout, Vector
from cordon.study import ReleaseRight

MAX_REFERENCE = 1024**3  # bytes of an evaluation set
MODEL_TRUST = "The models lie on the coordinator's disk encrypted to the release right: {holders} ({how})."


class Versions:
    """What becomes of each version of one job.

    Raises:
        ConfigError: the study gives nobody the release right, or its evaluation set is not there or another one.
    """

    def __init__(self, kit: Kit, job: Job, job_id: str, layout: Layout, features: FeatureContract) -> None:
        if kit.study.release is None:
            raise ConfigError(f"study {kit.study.study} gives nobody the release right: no model could ever be opened")
        self._release: ReleaseRight = kit.study.release
        self._kit, self._job, self._job_id, self._layout = kit, job, job_id, layout
        self._module = plan.network(job)  # local parameters, which no version has, stay at their first values in it
        self._reference = _reference(kit, features)

    @property
    def rows(self) -> int:
        """Of the reference set; 0 without one."""
        return 0 if self._reference is None else len(self._reference[1])

    @property
    def trust(self) -> str:
        """Who can open the models, in one sentence for the report."""
        how = "any one of them" if self._release.persons == 1 else "two of them together"
        return MODEL_TRUST.format(holders=", ".join(sorted(self._release.holders)), how=how)

    def keep(self, model: Vector, version: Version) -> tuple[FLModel, dict[str, Any]]:
        """(``model`` (d,) as it lies on this machine's disk: sealed; the fields of its event)."""
        plain = save_safetensors(self._layout.unflatten(model))
        auc = accuracy = None
        if self._reference is not None:
            models.set_vector(self._module, model, self._job.executor.local_parameters)
            auc, accuracy = auc_and_accuracy(self._module, *self._reference)
        fields: dict[str, Any] = {
            "version": version.number,
            "sites": list(version.sites),
            "staleness": list(version.staleness),
            "auc": auc,
            "accuracy": accuracy,
            "sha256": messages.sha256(plain),
            "step_norm": version.step_norm,
            "divergence": version.divergence,
        }
        return persistor.to_model(self._sealed(plain, version.number)), fields

    def _sealed(self, model: bytes, version: int) -> bytes:
        """For the holders of the study's release right."""
        subject = sealed_model.Subject(
            study=self._kit.study.digest,
            study_name=self._kit.study.study,
            job=self._job.name,
            job_id=self._job_id,
            job_digest=self._job.digest,
            version=version,
            layout_digest=self._layout.digest,
        )
        return sealed_model.seal(model, subject, self._release)


def _spread(version: Version) -> dict[str, Any] | None:
    """How far the rows of ``version`` pointed apart, for its event."""
    spread = version.divergence
    return None if spread is None else {**asdict(spread), "outliers": list(spread.outliers)}


def _reference(kit: Kit, features: FeatureContract) -> tuple[Any, Any] | None:
    """(x, y) of the evaluation set that the study contract names, or None where it names none (production default)."""
    evaluation, source = kit.study.evaluation, kit.evaluation_source
    if evaluation.kind == "none":
        return None
    if source is None:
        raise ConfigError(
            f"the study evaluates on {evaluation.name!r}, but local/coordinator.yml names no source for it"
        )
    if evaluation.sha256 not in (None, messages.sha256(documents.read_bytes(source, MAX_REFERENCE))):
        raise ConfigError(
            f"{source}: not the evaluation set {evaluation.name!r} that the study contract names (SHA-256)"
        )
    return read_reference(source, features)
