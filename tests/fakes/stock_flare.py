"""FLARE's own confidential computing (2.9.0), as it ships, to be attacked; and Cordon's in the same place.

Faked are the wire and the vendors' hardware. What decides is FLARE's own code: CCManager, contexts, the dispatch of
events, the shutdown command. The stand-ins are not laxer than what they stand for, so an attack that passes has passed
FLARE's decision.
"""

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.apis.workspace import Workspace
from nvflare.app_opt.confidential_computing.cc_authorizer import CCAuthorizer
from nvflare.app_opt.confidential_computing.cc_manager import CC_INFO, CCManager
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.defs import ClientRegSession, ClientType, InternalFLContextKey
from nvflare.private.fed.client.client_engine import ClientEngine
from nvflare.private.fed.server.server_engine import ServerEngine

from cordon.flare.audit import AUDIT_FILE
from cordon.flare.cc_manager import CordonCCManager

SERVER = "server"  # the name under which a stock server knows itself, whatever its certificate says
CPU, GPU = "x-snp", "x-nv-gpu"

# -- the wire --------------------------------------------------------------------------------------------------------


class Wire:
    """All cells. A request is answered by the handler that the target registered."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str, str], Callable[[Any], Any]] = {}
        self.connected: list[str] = []
        self.quiet = True
        self.tampered: dict[str, Callable[[Any, Any], Any]] = {}
        """Target -> (request, its honest reply or None) -> what comes back instead."""

    def ask(self, target: str, channel: str, topic: str, request: Any) -> Any:
        handler = None if self.quiet else self.handlers.get((target, channel, topic))
        reply = handler(request) if handler else make_reply(ReturnCode.TIMEOUT)
        return self.tampered[target](request, reply) if target in self.tampered else reply


class Cell:
    """One parent's cell: as much of it as a CC manager uses."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire, self.name, self.core_cell = wire, name, self

    def get_fqcn(self) -> str:
        return self.name

    def add_incoming_filter(self, *_: Any) -> None:
        """What the filters do is test_rogue_member_of_the_federation.py's business."""

    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Any], Any]) -> None:
        self.wire.handlers[self.name, channel, topic] = cb

    def send_request(self, target: str, channel: str, topic: str, request: Any, **_: Any) -> Any:
        return self.wire.ask(target, channel, topic, request)

    def broadcast_multi_requests(self, messages: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        replies = {}
        for name, each in messages.items():  # FLARE sends to the key, and names itself as the origin
            each.message.set_header(MessageHeaderKey.ORIGIN, self.name)
            replies[name] = self.wire.ask(name, each.channel, each.topic, each.message)
        return replies


class Parent:
    """A parent process: FLARE's engine and events around one CC manager."""

    def __init__(self, wire: Wire, name: str, root: Path, manager: Any, components: Mapping[str, Any]) -> None:
        self.name, self.root, self.manager = name, root, manager
        cell, server = Cell(wire, name), name == SERVER
        self.engine = MagicMock(spec=ServerEngine if server else ClientEngine)
        self.engine.get_cell = lambda: cell
        self.engine.get_component = components.get
        if server:
            self.engine.get_clients = lambda: [Client(each, f"token-{each}") for each in wire.connected]
            self.engine.has_relays.return_value = False
            self.engine.shutdown_server.return_value = ""
            self.engine.run_processes = {}
            self.engine.job_runner = MagicMock(running_jobs={})
            self.engine.server = MagicMock()
        self._contexts = FLContextManager(engine=self.engine, identity_name=name, job_id="")

    def context(self, **props: Any) -> FLContext:
        made = self._contexts.new_context()
        made.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(self.root), site_name=self.name), private=True)
        for key, value in props.items():
            made.set_prop(key, value, private=True, sticky=False)
        return made

    def fire(self, event: str, context: FLContext | None = None) -> FLContext:
        """FLARE's own dispatch: it logs a handler's exception, and goes on."""
        context = context or self.context()
        fire_event_to_components(event, [self.manager], context)
        return context

    def register(self, name: str, info: Any = None, kind: str = ClientType.REGULAR) -> bool:
        """``name`` registers with ``info`` as its public CC info; whether this server takes it.

        As fed_server.py register_client: of what a handler raises, only NotAuthenticated refuses.
        """
        context, peer = self.context(), FLContext()
        if info is not None:
            peer.set_prop(CC_INFO, info, private=False, sticky=False)
        context.set_peer_context(peer)
        context.set_prop(FLContextKey.CLIENT_TYPE, kind, private=False, sticky=False)
        session = ClientRegSession(name)
        context.set_prop(InternalFLContextKey.CLIENT_REG_SESSION, session, private=True, sticky=False)
        raised = self.fire(EventType.CLIENT_REGISTER_RECEIVED, context).get_prop(FLContextKey.EXCEPTIONS) or {}
        return not any(isinstance(each, NotAuthenticated) for each in raised.values())

    def schedule(self, answers: Mapping[str, tuple[bool, str]]) -> dict[str, tuple[bool, str]]:
        """The scheduler asks the sites for resources and they say ``answers``: what it goes by afterwards."""
        result = dict(answers)
        self.fire(EventType.BEFORE_CHECK_CLIENT_RESOURCES)
        context = self.context(**{FLContextKey.RESOURCE_CHECK_RESULT: result})
        self.fire(EventType.AFTER_CHECK_CLIENT_RESOURCES, context)
        return result

    @property
    def down(self) -> bool:
        """Whether this server was told to shut everybody down, itself included."""
        return bool(self.engine.shutdown_server.called)


def _start(wire: Wire, parents: Mapping[str, Parent]) -> None:
    """All are up, their handlers registered, nobody has asked anybody; no thread watches, a test makes the rounds."""
    wire.quiet = True
    for event in (EventType.SYSTEM_BOOTSTRAP, EventType.SYSTEM_START, EventType.SYSTEM_END):
        for parent in parents.values():
            raised = parent.fire(event).get_prop(FLContextKey.EXCEPTIONS)
            assert not raised, raised
    wire.quiet = False


# -- stock parents ---------------------------------------------------------------------------------------------------


class FlawlessAuthorizer(CCAuthorizer):
    """An authorizer without a flaw of its own: it takes what its vendor's devices signed, each token once."""

    vendor = ed25519.Ed25519PrivateKey.generate()

    def __init__(self, namespace: str, device: bool = True) -> None:
        self.namespace, self.device = namespace, device
        self.seen: set[bytes] = set()

    def get_namespace(self) -> str:
        return self.namespace

    def generate(self) -> str:
        if not self.device:
            return "no device here"
        body = self.namespace.encode() + secrets.token_bytes(32)
        return base64.b64encode(self.vendor.sign(body) + body).decode()

    def verify(self, token: str) -> bool:
        try:
            raw = base64.b64decode(token, validate=True)
            self.vendor.public_key().verify(raw[:64], raw[64:])
        except (ValueError, InvalidSignature):
            return False
        fresh = raw[64:] not in self.seen and raw[64:].startswith(self.namespace.encode())
        self.seen.add(raw[64:])
        return fresh


class StockFederation:
    """A server and two sites with the stock CCManager, CPU and GPU evidence, all of them CC-enabled.

    Args:
        without: names of the parents that have no confidential hardware.
    """

    names = (SERVER, "site-1", "site-2")

    def __init__(self, folder: Path, without: Sequence[str] = (), enabled: Sequence[str] = names) -> None:
        self.wire, self.parents = Wire(), {}
        for part in ("startup", "local"):  # all that FLARE wants of a workspace
            (folder / part).mkdir(parents=True, exist_ok=True)
        for name in self.names:
            issuers = {each: FlawlessAuthorizer(each, device=name not in without) for each in (CPU, GPU)}
            manager = CCManager(
                cc_issuers_conf=[{"issuer_id": each, "token_expiration": 100} for each in issuers],
                cc_verifier_ids=list(issuers),
                verify_frequency=10_000_000,
                cc_enabled_sites=list(enabled),
            )
            self.parents[name] = Parent(self.wire, name, folder, manager, issuers)
        # Stock threads wait a random fifth of verify_frequency before their first look, and _start ends them at once.
        _start(self.wire, self.parents)
        self.wire.connected = [name for name in self.names if name != SERVER]
        self.server = self.parents[SERVER]

    def fresh_info(self, name: str) -> list[dict[str, Any]]:
        """What ``name`` answers to anybody who asks it for fresh tokens."""
        request = MagicMock(payload={"requester": "anybody"})
        info: list[dict[str, Any]] = self.wire.ask(name, "cc_validation", "request_fresh_token", request).payload[
            "cc_info"
        ]
        return info


# -- Cordon's parents ------------------------------------------------------------------------------------------------


class CordonFederation:
    """The same with Cordon's manager, on kits as provisioned (``fakes.federation_kits``)."""

    def __init__(self, kits: Path, names: Sequence[str]) -> None:
        self.wire, self.kits, self.names, self.parents = Wire(), kits, list(names), {}
        self.boot(self.names)

    def boot(self, names: Sequence[str]) -> None:
        """Start, or start again, the parents of ``names``."""
        for name in names:
            manager = CordonCCManager(check_interval_s=3600.0, reply_timeout_s=0.0)
            self.parents[name] = Parent(self.wire, name, self.kits / name, manager, {})
        _start(self.wire, {name: self.parents[name] for name in names})
        self.wire.connected = [name for name in self.names if name != SERVER]
        self.server = self.parents[SERVER]

    def admitted(self, *names: str) -> list[str]:
        """Who of ``names`` (default: all that are connected) gets a job when all of them offer their resources."""
        answers = {name: (True, f"token-{name}") for name in names or self.wire.connected}
        return [name for name, (enough, _) in self.server.schedule(answers).items() if enough]

    def failed(self, peer: str, verifier: str = SERVER) -> set[str]:
        """Codes of all checks that ``verifier`` noted as failed for ``peer``, on any line of its audit file."""
        path = self.kits / verifier / AUDIT_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {
            code for line in lines if line["peer"] == peer for code, result, *_ in line["codes"] if result == "fail"
        }
