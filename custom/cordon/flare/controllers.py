"""The coordinator's entry of a job: FLARE's workflow class around ``cordon.flare.run.Run``.

FLARE calls back in its own threads; callbacks only put what came on a queue, one loop in ``Run`` judges it.
"""

from __future__ import annotations

import queue
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from cordon.flare.kit import load_kit
from cordon.flare.run import Run
from cordon.flare.session import load_job


class AsyncController(ModelController):
    """Buffered asynchronous training. Arguments: ``cordon.job.ControllerArgs`` (names, units and ranges there)."""

    def __init__(
        self,
        privacy: str,
        rule: str,
        server_opt: dict[str, Any],
        buffer: int,
        versions: int,
        rounds_per_site: int,
        norm_bound: float,
        rule_args: dict[str, float] | None = None,
        pre_aggregation: list[dict[str, Any]] | tuple[dict[str, Any], ...] = (),
        masked: dict[str, Any] | None = None,
        staleness: dict[str, Any] | None = None,
        max_staleness: int = 10,
        max_faults: int = 2,
        ticket_timeout_s: float = 3600.0,
        init_seed: int = 0,
    ) -> None:
        super().__init__(ignore_result_error=True, task_check_period=0.1)
        self.privacy = privacy
        self.rule = rule
        self.server_opt = server_opt
        self.buffer = buffer
        self.versions = versions
        self.rounds_per_site = rounds_per_site
        self.norm_bound = norm_bound
        self.rule_args = rule_args
        self.pre_aggregation = pre_aggregation
        self.masked = masked
        self.staleness = staleness
        self.max_staleness = max_staleness
        self.max_faults = max_faults
        self.ticket_timeout_s = ticket_timeout_s
        self.init_seed = init_seed
        self._inbox: queue.Queue[tuple[str, str, Any]] = queue.Queue()  # (kind, site, what came)

    def send(self, task: str, model: FLModel, site: str) -> None:
        """Give ``site`` a task; its answer goes into the inbox."""
        self.send_model(task_name=task, data=model, targets=[site], callback=self._receive)

    def _receive(self, model: FLModel) -> None:
        self._inbox.put(("result", str(model.meta.get("client_name", "")), model))

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        if not is_unknown_task and result.get_return_code(ReturnCode.OK) != ReturnCode.OK:
            self._inbox.put(("error", client_name, str(result.get_return_code())))
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """A site that FLARE deems disconnected is lost to the job until FLARE hears from it again."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.CLIENT_DISCONNECTED:
            self._inbox.put(("disconnected", str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)), None))
        elif event_type == EventType.CLIENT_RECONNECTED:
            self._inbox.put(("reconnected", str(fl_ctx.get_prop(FLContextKey.RECONNECTED_CLIENT_NAME)), None))

    def run(self) -> None:
        """FLARE's entry: returns when the job is done, raises to fail it with the reason."""
        job, job_id, root = load_job(self.fl_ctx)
        kit = load_kit(root, datetime.now(UTC))
        run = Run(self, self._inbox, kit, job, job_id, Path(self.get_run_dir()))
        try:
            run.train()
        finally:
            run.close()
