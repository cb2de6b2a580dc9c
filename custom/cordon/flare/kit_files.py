"""FLARE's own files in a kit, as Cordon wants them: components, class allow-list, roles, log streaming.

Provisioning writes them, and a kit starts only with exactly these (``kit_contents``): both by the functions below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cordon.errors import ConfigError
from cordon.flare.cc_profile import REQUIRED_CLASSES, CCConfig

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


def components(hospital: bool, check_interval_s: Any) -> dict[str, dict[str, Any]]:
    """File in ``local/`` -> content: the CC manager of both sides and each side's gate for jobs."""
    manager = {
        "id": "cc_manager",
        "path": "cordon.flare.cc_manager.CordonCCManager",
        "args": {"check_interval_s": check_interval_s},
    }
    made: dict[str, dict[str, Any]] = {"cc_manager__p_resources.json": {"components": [manager]}}
    if hospital:
        deployer = {"id": "app_deployer", "path": "cordon.flare.deployer.SiteAppDeployer", "args": {}}
        made["app_deployer__p_resources.json"] = {"components": [deployer]}
    else:
        validator = {"path": "cordon.flare.deployer.ConfigurationOnly", "args": {}}
        made["app_validator__p_resources.json"] = {"app_validator": validator}
    return made


def write_components(local: Path, config: CCConfig, hospital: bool) -> None:
    """Write ``components``."""
    for name, tree in components(hospital, config.cc_attestation.check_frequency).items():
        _write(local / name, tree)


def restricted(resources: dict[str, Any], log_streaming: bool | None) -> dict[str, Any]:
    """FLARE's stock resources with our class allow-list; at a hospital log streaming is set (None: not a hospital)."""
    made = {**resources, "class_list_enforcement_mode": "enforce", "class_allow_list": list(REQUIRED_CLASSES)}
    if log_streaming is not None:
        made["allow_log_streaming"] = log_streaming
        if not log_streaming:
            made["components"] = [each for each in made["components"] if each["path"] != LOG_STREAMER]
    return made


def restrict_resources(local: Path, log_streaming: bool | None) -> None:
    """Put ``restricted`` in place of FLARE's stock resources."""
    path = local / "resources.json.default"
    if not path.exists():
        raise ConfigError(f"{path}: missing; put CordonBuilder after StaticFileBuilder in the project file")
    _write(path, restricted(json.loads(path.read_text()), log_streaming))


def waits_less(start_script: str) -> str:
    """The coordinator's ``start.sh``: a job that is done ends although a killed site never reports.

    FLARE would wait 900 seconds, and reads this setting from the environment only.
    """
    first, rest = start_script.split("\n", 1)
    name = "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT"
    return f'{first}\nexport {name}="${{{name}:-{OUTCOME_WAIT_S}}}"\n{rest}'


def limit_outcome_wait(startup: Path) -> None:
    """Put ``waits_less`` in place of the coordinator's ``start.sh``."""
    path = startup / "start.sh"
    if not path.exists():
        raise ConfigError(f"{path}: missing; put CordonBuilder after StaticFileBuilder in the project file")
    path.write_text(waits_less(path.read_text()))


def write_authorization(local: Path) -> None:
    """FLARE's roles, in place of the stock ones."""
    _write(local / "authorization.json.default", AUTHORIZATION)


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n")
