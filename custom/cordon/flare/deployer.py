"""Gates for jobs: FLARE deploys nothing at a hospital that its policy and the study contract don't allow.

They run in the parent process, before any job process exists. What they return goes to FLARE's job record
(``job_deploy_detail``), so that the lead reads site and reason in the console.

The coordinator takes jobs that are configuration only. FLARE asks for that in ``custom/`` alone, and then searches the
whole app for its own settings: a ``comm_config.json`` there makes it import what lies beside it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.utils.app_deployer import AppDeployer

from cordon import job as jobs
from cordon.errors import ConfigError, CordonError
from cordon.flare import aggregation
from cordon.flare.cc_manager import CordonCCManager
from cordon.flare.kit import Kit, load_kit
from cordon.flare.plan import check_job, judge_job

CC_MANAGER = "cc_manager"  # component id in the kit


class SiteAppDeployer(AppDeployer):
    """FLARE's app deployer behind three questions: coordinator attested? job allowed? data mapped?"""

    def deploy(
        self,
        workspace: Workspace,
        job_id: str,
        job_meta: dict[str, Any],
        app_name: str,
        app_data: bytes,
        fl_ctx: FLContext,
    ) -> str:
        """FLARE's contract: '' if deployed, else why not."""
        name = str(job_meta.get(JobMetaKey.JOB_NAME.value, ""))
        try:
            manager = fl_ctx.get_engine().get_component(CC_MANAGER)
            if not isinstance(manager, CordonCCManager):
                return f"{CC_MANAGER} is not Cordon's: this kit was not provisioned by Cordon"
            manager.require_coordinator()
            kit = load_kit(Path(workspace.get_root_dir()), datetime.now(UTC))
            check(kit, jobs.from_app_zip(name, app_data))
        except CordonError as error:
            return f"{fl_ctx.get_identity_name()} refuses job {name!r}: {error}"
        except Exception:  # a gate that stumbles stays shut; the details are for the site's own log
            logging.getLogger(__name__).exception(f"job {name!r} could not be judged")
            return f"{fl_ctx.get_identity_name()} refuses job {name!r}: it could not be judged (see the site's log)"
        return super().deploy(workspace, job_id, job_meta, app_name, app_data, fl_ctx) or ""


class ConfigurationOnly(AppValidator):
    """The coordinator's gate: an app holds the three files of a Cordon job and what FLARE adds when it signs one; its
    rule can work with its buffer, and secure aggregation with the study's sites."""

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """FLARE's contract: ('', properties) if the app may be deployed, else why not; FLARE then deletes it."""
        try:
            entries = sorted(path.name for path in Path(app_folder).iterdir())
            if more := [name for name in entries if name != "config" and name not in jobs.FLARE_FILES]:
                raise ConfigError(f"configuration only, but the app also holds {', '.join(more[:5])}")
            job = jobs.from_folder("as submitted", Path(app_folder) / "config")
            if job.controller.masked is None:
                aggregation.of(job.controller)
            else:  # FLARE unpacks an app into <kit>/<job id>/<app>
                study = load_kit(Path(app_folder).parents[1], datetime.now(UTC)).study
                check_job(job, len(study.roster))
        except CordonError as error:
            return f"the coordinator refuses the job: {error}", {}
        except Exception:  # as above
            logging.getLogger(__name__).exception("a job could not be judged")
            return "the coordinator refuses the job: it could not be judged (see its log)", {}
        return "", {}


def check(kit: Kit, job: jobs.Job) -> None:
    """Raise unless ``job`` may train at ``kit``: policy, study, privacy plan, confirmed mapping."""
    judge_job(kit, job)
    kit.mapping(job)
