"""A whole job in one process and one thread: the real controller and the real executors, the wire between them faked.

What FLARE does around them is FLARE's own code (contexts, workspace, tasks, results, serialisation). Faked are the
network (``Controller.broadcast`` puts a task on a list; whenever the controller waits, the next one is served), the
engine, and the clock, which stands still unless somebody sleeps or waits in vain.
"""

import base64
import json
import queue
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.apis.workspace import Workspace
from nvflare.app_common.decomposers import common_decomposers
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs

from cordon import job as jobs
from cordon import messages, models, signing
from cordon.attest.appraise import make_evidence
from cordon.attest.keys import ProcessKeys
from cordon.flare import codec, controllers, executors, plan, session
from cordon.flare.kit import load_kit
from cordon.flare.persistor import SafetensorsPersistor
from cordon.report import events
from cordon.sealing import decode_kem_key

from .federation_kits import HOSPITALS, ROOT, SERVER

JOB_ID = "11111111-2222-3333-4444-555555555555"
JOBS = ROOT / "jobs"
MAX_WAITS = 2000

flare_decomposers.register()
common_decomposers.register()


def job_files(
    controller: Mapping[str, Any] | None = None, executor: Mapping[str, Any] | None = None, job: str = "oncology"
) -> dict[str, bytes]:
    """The files of ``jobs/<job>`` with some arguments changed; short: 3 versions, 4 rounds a site."""
    files = {name: (JOBS / job / "app" / "config" / name).read_bytes() for name in jobs.FILES}
    server, client = (json.loads(files[f"config_fed_{side}.json"]) for side in ("server", "client"))
    server["workflows"][0]["args"].update({"versions": 3, "rounds_per_site": 4, **(controller or {})})
    client["executors"][0]["executor"]["args"].update(executor or {})
    return {
        "config_fed_server.json": json.dumps(server).encode(),
        "config_fed_client.json": json.dumps(client).encode(),
        "contract.yml": files["contract.yml"],
    }


def masked_files(
    masked: Mapping[str, Any] | None = None,
    executor: Mapping[str, Any] | None = None,
    **controller: Any,
) -> dict[str, bytes]:
    """The files of ``jobs/oncology_masked``, with some of its arguments (``masked``: of secure aggregation) changed."""
    config = json.loads((JOBS / "oncology_masked" / "app" / "config" / "config_fed_server.json").read_bytes())
    terms = {**config["workflows"][0]["args"]["masked"], **(masked or {})}
    return job_files({**controller, "masked": terms}, executor, "oncology_masked")


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self, start: float = 1_000_000.25) -> None:
        self.now = start
        self.slept = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


class Engine:
    """As much of FLARE's engine as controller and executor ask for."""

    def __init__(self, root: Path, name: str, clients: tuple[str, ...] = (), components: Any = None) -> None:
        self.workspace = Workspace(str(root), site_name=name)
        self.clients = [Client(each, f"token-{each}") for each in clients]
        self.components = components or {}
        self.contexts = FLContextManager(engine=self, identity_name=name, job_id=JOB_ID)

    def get_workspace(self) -> Workspace:
        return self.workspace

    def get_clients(self) -> list[Client]:
        return self.clients

    def get_component(self, component_id: str) -> Any:
        return self.components.get(component_id)

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        pass

    def new_context(self) -> FLContext:
        context = self.contexts.new_context()
        context.set_prop(FLContextKey.WORKSPACE_OBJECT, self.workspace, private=True)
        return context


def over_the_wire(shareable: Shareable) -> Shareable:
    """What the peer gets: FLARE's own serialisation, there and back."""
    received: Shareable = fobs.loads(fobs.dumps(shareable))
    return received


def open_message(shareable: Shareable) -> tuple[dict[str, Any], bytes]:
    """(parts, payload) of a message."""
    return codec.from_model(FLModelUtils.from_shareable(shareable))


def message(parts: dict[str, Any], payload: bytes = b"") -> Shareable:
    """A message as it comes from the wire."""
    return over_the_wire(FLModelUtils.to_shareable(codec.to_model(parts, payload)))


def stage_of(task: str, shareable: Shareable) -> str:
    """The stage of secure aggregation that a task asks for, else the task."""
    return str(open_message(shareable)[0]["stage"]) if task == executors.SECAGG_TASK else task


def said(reply: Shareable) -> str:
    """The reason code of a refusal ('' if the reply is none); a refusal must be that and nothing else."""
    parts, payload = open_message(reply)
    if "refusal" not in parts:
        return ""
    assert set(parts) == {"refusal"}
    assert payload == b""
    return str(signing.unverified_body(parts["refusal"])["code"])


class Site:
    """One hospital's job process."""

    def __init__(self, kits: Path, name: str, files: Mapping[str, bytes]) -> None:
        self.name, self.root = name, kits / name
        self.engine = Engine(self.root, name)
        deploy(self.engine.workspace, files)
        args = json.loads(files["config_fed_client.json"])["executors"][0]["executor"]["args"]
        self.executor = executors.DPTrainExecutor(**args)
        self.abort = Signal()

    @property
    def session(self) -> session.Session:
        assert self.executor._session is not None
        return self.executor._session

    def execute(self, task: str, shareable: Shareable) -> Shareable:
        """Serve a task as FLARE's client runner would."""
        reply = self.executor.execute(task, over_the_wire(shareable), self.engine.new_context(), self.abort)
        return over_the_wire(reply)


def deploy(workspace: Workspace, files: Mapping[str, bytes], name: str = "oncology") -> None:
    """A run folder as FLARE's app deployer leaves it."""
    config = Path(workspace.get_app_config_dir(JOB_ID))
    config.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (config / file).write_bytes(data)
    Path(workspace.get_job_meta_path(JOB_ID)).write_text(json.dumps({"name": name}))


class _Inbox(queue.Queue):  # type: ignore[type-arg]
    """The controller's inbox: waiting for it serves the next tasks."""

    def __init__(self, federation: "Federation") -> None:
        super().__init__()
        self.federation, self.waits = federation, 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            return super().get(block=False)
        if self.empty():
            self.federation.serve()
        try:
            return super().get(block=False)
        except queue.Empty:
            self.federation.clock.sleep(1.0)
            self.waits += 1
            assert self.waits < MAX_WAITS, "the controller waits for ever"
            raise


class Federation:
    """One run of a job. Set ``on_task`` / ``on_reply`` to attack the wire, then ``run``.

    ``on_reply(site, task, reply)`` gives what really arrives: a list of messages, none at all for a lost one.
    """

    def __init__(
        self,
        kits: Path,
        files: Mapping[str, bytes],
        clock: Clock,
        hospitals: tuple[str, ...] = HOSPITALS,
        at_once: int = 1,
    ) -> None:
        self.kits, self.clock, self.at_once = kits, clock, at_once
        self.sites = {name: Site(kits, name, files) for name in hospitals}
        self.engine = Engine(kits / SERVER, SERVER, hospitals, {"persistor": SafetensorsPersistor()})
        deploy(self.engine.workspace, files)
        args = json.loads(files["config_fed_server.json"])["workflows"][0]["args"]
        self.controller = controllers.AsyncController(**args)
        self.controller.abort_signal = Signal()
        self.controller.start_controller(self.engine.new_context())
        self.controller.broadcast = self._broadcast
        self.inbox = _Inbox(self)
        self.controller._inbox = self.inbox
        self.pending: deque[tuple[str, Task]] = deque()
        self.on_task: Callable[[str, str, Shareable], Shareable] = lambda site, task, shareable: shareable
        self.on_reply: Callable[[str, str, Shareable], list[Shareable]] = lambda site, task, reply: [reply]
        self.served: list[tuple[str, str]] = []
        self.seen: list[tuple[str, str, Shareable]] = []
        """(site, task, reply) of every reply that a site gave."""
        self.stages: list[tuple[str, str]] = []
        """(site, stage or task) of every task that reached a site."""
        self.dead: set[str] = set()
        """Sites that no task reaches any more."""

    @property
    def run_dir(self) -> Path:
        return Path(self.engine.workspace.get_run_dir(JOB_ID))

    def run(self) -> list[dict[str, Any]]:
        """Run the job to its end; its events as plain dicts."""
        self.controller.run()
        return self.events()

    def events(self) -> list[dict[str, Any]]:
        path = self.run_dir / events.EVENTS_FILE
        events.read(path)  # every line fits the schema
        return [json.loads(line) for line in path.read_text().splitlines()]

    def serve(self) -> None:
        """The next tasks reach their sites, and the answers come back."""
        for _ in range(min(self.at_once, len(self.pending))):
            site, task = self.pending.popleft()
            shareable = self.on_task(site, task.name, over_the_wire(task.data))
            if site in self.dead:
                continue
            self.served.append((site, task.name))
            self.stages.append((site, stage_of(task.name, shareable)))
            reply = self.sites[site].execute(task.name, shareable)
            self.seen.append((site, task.name, reply))
            for each in self.on_reply(site, task.name, reply):
                self.arrive(site, task, each)

    def arrive(self, site: str, task: Task, reply: Shareable) -> None:
        """``reply`` of ``site`` to ``task`` arrives at the coordinator, through FLARE's own handling of results."""
        client_task = ClientTask(Client(site, f"token-{site}"), task)
        client_task.result = over_the_wire(reply)
        self.controller._process_result(client_task, self.engine.new_context())

    def _broadcast(self, task: Task, fl_ctx: FLContext, targets: list[str], **_: Any) -> None:
        self.pending.extend((site, task) for site in targets)


class Hand:
    """A coordinator played by hand, with the coordinator's own kit; what it says to one site is the test's choice."""

    def __init__(self, site: Site, kits: Path, files: Mapping[str, bytes]) -> None:
        self.site, self.files = site, dict(files)
        self.job = jobs.from_files("oncology", self.files)
        self.kit = load_kit(kits / SERVER, _now())
        self.keys = ProcessKeys.generate()
        self.layout = plan.layout(self.job)
        executor = self.job.executor
        count = len(plan.feature_contract(self.job).features)
        self.w = models.initial_vector(executor.model, executor.model_args, count, 0)
        self.links = [messages.sha256(messages.pack("w", self.w))]
        self.head = messages.chain_head("", 0, self.links[0])
        self.nonce = b""
        self.policy_digest = ""
        self.sealed_for: Any = None  # what models are sealed to: the site's KEM key, once it attested
        self._tickets = 0

    def attest(self) -> dict[str, Any]:
        """Challenge the site; returns the parts of its reply."""
        parts, payload = open_message(self.site.execute(executors.ATTEST_TASK, self.challenge()))
        assert payload == b""
        self.nonce, self.policy_digest = codec.nonce(parts), parts["policy_digest"]
        body = signing.unverified_body(parts["evidence"])
        self.sealed_for = decode_kem_key(base64.b64decode(body["kem_public_key"]))
        return parts

    def challenge(self, **changes: Any) -> Shareable:
        parts = {"nonce": base64.b64encode(b"c" * 32).decode(), "policy_digest": self.kit.attest_policy_digest}
        return message({**parts, **changes})

    def evidence(self, *, nonce: bytes | None = None, context: Mapping[str, Any] | None = None, **parts: Any) -> Any:
        """The coordinator's evidence for the site's challenge; what is changed is a lie."""
        honest = session.job_context(self.kit, self.job, JOB_ID, SERVER, self.policy_digest)
        return make_evidence(
            parts.get("attester", self.kit.attester),
            msgspec.structs.replace(honest, **(context or {})),
            self.nonce if nonce is None else nonce,
            parts.get("keys", self.keys),
            parts.get("mtls_key", self.kit.mtls_key),
        )

    @property
    def version(self) -> int:
        return len(self.links) - 1

    def next_version(self, w: Any = None) -> None:
        """Go on along the model chain, to the model ``w``."""
        self.w = (self.w + np.float32(0.01) if w is None else w).astype(np.float32)
        self.links.append(messages.sha256(messages.pack("w", self.w)))
        self.head = messages.chain_head(self.head, self.version, self.links[-1])

    def header(self, **changes: Any) -> messages.ModelHeader:
        self._tickets += 1
        fields = {
            "v": 1,
            "job": JOB_ID,
            "ticket": f"{self._tickets:032x}",
            "version": self.version,
            "model_chain_head": self.head,
            "layout_digest": self.layout.digest,
            "payload_sha256": "",
        }
        return messages.ModelHeader(**{**fields, **changes})

    def model(
        self,
        *,
        payload: bytes | None = None,
        key: Any = None,
        evidence: Any = None,
        links: Any = None,
        sealed_for: Any = None,
        **changes: Any,
    ) -> Shareable:
        """A global model (``payload`` is its plaintext) under a fresh ticket, sealed to the site and signed by ``key``;
        ``changes`` go into the header."""
        packed = messages.pack("w", self.w) if payload is None else payload
        stranger = decode_kem_key(ProcessKeys.generate().kem_public_bytes)  # before the site showed a key
        header, payload = messages.seal(self.header(**changes), packed, sealed_for or self.sealed_for or stranger)
        envelope = messages.sign(key or self.keys.signing_key, header)
        parts = {"model": envelope, "links": {"after": -1, "sha256": self.links} if links is None else links}
        if evidence is not None:
            parts["evidence"] = evidence
        return message(parts, payload)

    def train(self, shareable: Shareable) -> Shareable:
        return self.site.execute(executors.TRAIN_TASK, shareable)

    def opened(self, reply: Shareable, keys: ProcessKeys | None = None) -> tuple[messages.UpdateHeader, bytes]:
        """(header, plaintext) of an honest update, with this coordinator's ``keys``."""
        parts, payload = open_message(reply)
        assert set(parts) == {"update"}
        key = self.site.session.keys.signing_key.public_key()
        header = messages.verify(parts["update"], messages.UpdateHeader, key, _now())
        return header, messages.open_payload(header, payload, (keys or self.keys).kem_key)

    def verified_update(self, reply: Shareable) -> tuple[messages.UpdateHeader, Any]:
        """(header, delta) of an honest update."""
        header, packed = self.opened(reply)
        return header, messages.unpack("delta", packed, self.layout.size)


def _now() -> datetime:
    return datetime.now(UTC)
