"""FLARE's own files in a kit, as Cordon wants them: components, class allow-list, roles, log streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cordon.errors import ConfigError
from cordon.flare.cc_profile import CCConfig

LOG_STREAMER = "nvflare.app_common.logging.site_log_streamer.SiteLogStreamer"

OUTCOME_WAIT_S = 20

AUTHORIZATION = {
    "format_version": "1.0",
    "permissions": {
        "project_admin": {
            "submit_job": "any",
            "clone_job": "n:submitter",
            "manage_job": "any",
            "download_job": "n:submitter",
            "view": "any",
            "operate": "any",
            "shell_commands": "none",
            "byoc": "none",
            "server-predeployed-flwr": "none",
        },
        "org_admin": {
            "submit_job": "none",
            "clone_job": "none",
            "manage_job": "o:submitter",
            "download_job": "none",
            "view": "any",
            "operate": "o:site",
            "shell_commands": "none",
            "byoc": "none",
            "server-predeployed-flwr": "none",
        },
        "lead": {
            "submit_job": "any",
            "clone_job": "n:submitter",
            "manage_job": "n:submitter",
            "download_job": "n:submitter",
            "view": "any",
            "operate": "none",
            "shell_commands": "none",
            "byoc": "none",
            "server-predeployed-flwr": "none",
        },
        "member": {
            "submit_job": "none",
            "clone_job": "none",
            "manage_job": "none",
            "download_job": "none",
            "view": "any",
            "operate": "none",
            "shell_commands": "none",
            "byoc": "none",
            "server-predeployed-flwr": "none",
        },
    },
}
"""Who may do what over the console. No role brings code, leads fetch their own results.

FLARE checks it at the coordinator; a site checks it only for senders that ask to be checked, so it binds an honest
coordinator. What a site does on anybody's request is bounded by ``gates``.
"""


def write_components(local: Path, config: CCConfig, hospital: bool) -> None:
    """The CC manager of both sides and, at a hospital, the gate for jobs."""
    manager = {
        "id": "cc_manager",
        "path": "cordon.flare.cc_manager.CordonCCManager",
        "args": {"check_interval_s": config.cc_attestation.check_frequency},
    }
    _write(local / "cc_manager__p_resources.json", {"components": [manager]})
    if hospital:
        deployer = {"id": "app_deployer", "path": "cordon.flare.deployer.SiteAppDeployer", "args": {}}
        _write(local / "app_deployer__p_resources.json", {"components": [deployer]})


def restrict_resources(local: Path, config: CCConfig, log_streaming: bool | None) -> None:
    """Replace the class allow-list by the profile's; at a hospital set log streaming (None: not a hospital)."""
    path = local / "resources.json.default"
    if not path.exists():
        raise ConfigError(f"{path}: missing; put CordonBuilder after StaticFileBuilder in the project file")
    resources = json.loads(path.read_text())
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = list(config.class_allow_list)
    if log_streaming is not None:
        resources["allow_log_streaming"] = log_streaming
        if not log_streaming:
            resources["components"] = [each for each in resources["components"] if each["path"] != LOG_STREAMER]
    _write(path, resources)


def limit_outcome_wait(startup: Path) -> None:
    """At the coordinator: a job that is done ends although a killed site never reports; FLARE would wait 900 seconds.

    FLARE reads this setting from the environment only.
    """
    path = startup / "start.sh"
    if not path.exists():
        raise ConfigError(f"{path}: missing; put CordonBuilder after StaticFileBuilder in the project file")
    first, rest = path.read_text().split("\n", 1)
    name = "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT"
    path.write_text(f'{first}\nexport {name}="${{{name}:-{OUTCOME_WAIT_S}}}"\n{rest}')


def write_authorization(local: Path) -> None:
    """FLARE's roles, in place of the stock ones."""
    _write(local / "authorization.json.default", AUTHORIZATION)


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n")
