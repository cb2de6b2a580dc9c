"""A member of the federation, or an admin, uses FLARE's own channels against other members.

FLARE 2.9: a site runs `cat`, `grep`, `ls` (sys.shell), delete_run and more for whoever sends the request; it looks at
roles only if the sender's headers ask for it, and the server forwards what one member sends to another. The server
binds a token to its holder's cell only while it knows the token, and its own (name and token "server") goes out in
the headers of each of its messages; so a member can send as the server, too.

Messages go through FLARE's own dispatch here (``CoreCell.process_message``), with cells that have no network.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from nvflare.fuel.f3.cellnet.core_cell import CoreCell, Message
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessageType
from nvflare.fuel.f3.cellnet.utils import encode_payload
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.stats_pool import StatsPoolManager
from nvflare.fuel.sec.audit import Auditor, AuditService
from nvflare.private.admin_defs import Message as Command
from nvflare.private.defs import InfoCollectorTopic, SysCommandTopic, TrainingTopic, new_cell_message
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from cordon.flare import gates
from cordon.flare.kit import load_kit
from fakes.in_process import HOSPITALS

VICTIM, ROGUE = HOSPITALS[:2]
ADMIN = "lead@cordon.example"
CONSOLE = "~a1b2c3"  # a console's cell has a random name
JOB = "0b5c"


class Desk:
    """One parent process: FLARE's cell behind Cordon's gates; what is let in is noted, nothing is sent."""

    def __init__(self, kits: Path, name: str) -> None:
        self.cell = CoreCell(name, "tcp://localhost:1", secure=False, credentials={})
        CoreCell.ALL_CELLS.pop(name, None)  # cells of one process find each other by it, past every server
        self.heard: list[str] = []
        self.passed_on: list[str] = []
        for channel in (CellChannel.CLIENT_MAIN, CellChannel.SERVER_MAIN, CellChannel.AUX_COMMUNICATION,
                        "_net_manager", "cordon_attest"):  # fmt: skip
            self.cell.register_request_cb(channel, "*", self._hear)
        self.cell._forward = lambda endpoint, origin, destination, *rest: self.passed_on.append(destination)
        gates.install(load_kit(kits / name, datetime.now(UTC)), self.cell, logging.getLogger("desk"))

    def _hear(self, message: Message) -> None:
        self.heard.append(message.get_header(MessageHeaderKey.ORIGIN))

    def get(self, origin, destination, neighbour, holder, *, kind=MessageType.REQ, channel=CellChannel.CLIENT_MAIN):
        """A message arrives over ``neighbour``'s connection, whose certificate names ``holder``."""
        message = new_cell_message({}, {"body": 1})
        message.add_headers(
            {
                MessageHeaderKey.MSG_TYPE: kind,
                MessageHeaderKey.CHANNEL: channel,
                MessageHeaderKey.TOPIC: "t",
                MessageHeaderKey.ORIGIN: origin,
                MessageHeaderKey.DESTINATION: destination,
                MessageHeaderKey.FROM_CELL: neighbour,
                MessageHeaderKey.REPLY_EXPECTED: False,
            }
        )
        encode_payload(message)
        props = {} if holder is None else {DriverParams.PEER_CN.value: holder}
        connection = SimpleNamespace(get_conn_properties=lambda: props)
        before = len(self.heard) + len(self.passed_on)
        self.cell.process_message(Endpoint(neighbour), connection, 0, message)
        return len(self.heard) + len(self.passed_on) > before


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """FLARE's globals, one set for each test: a hospital's commands, and the statistics of cells by name."""
    monkeypatch.setattr(StatsPoolManager, "pools", {})
    made = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", made)
    return made


@pytest.fixture
def server(made_kits):
    return Desk(made_kits, "server")


@pytest.fixture
def victim(made_kits):
    return Desk(made_kits, VICTIM)


# -- what a hospital does at all -------------------------------------------------------------------------------------


@pytest.fixture
def agent(monkeypatch, victim):
    """FLARE's administration of the victim's parent process, with the commands that are left."""
    monkeypatch.setattr(AuditService, "get_auditor", lambda: MagicMock(spec=Auditor))
    made = FedAdminAgent(VICTIM, MagicMock(), MagicMock())
    for each in ClientRequestProcessors.request_processors:
        made.register_processor(each)
    return made


def test_nobody_reads_a_file_of_a_hospital(agent, tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("id,malignant\np1,1\n")
    for command in (f"cat {path}", f"grep -n p1 {path}", f"head {path}", f"tail {path}", f"ls -al {tmp_path}"):
        reply = agent._dispatch_request(new_cell_message({}, Command(topic=SysCommandTopic.SHELL, body=command)))
        assert "p1" not in str(reply.payload.body) and "patients.csv" not in str(reply.payload.body)
        assert reply.payload.body == "invalid_request"


@pytest.mark.parametrize(
    "topic",
    [
        TrainingTopic.DELETE_RUN,
        TrainingTopic.CONFIGURE_JOB_LOG,
        TrainingTopic.GET_SCOPES,
        TrainingTopic.ABORT_TASK,
        SysCommandTopic.SYS_INFO,
        SysCommandTopic.REPORT_ENV,
        SysCommandTopic.CONFIGURE_SITE_LOG,
        InfoCollectorTopic.SHOW_ERRORS,  # free text out of the site's log
        InfoCollectorTopic.SHOW_STATS,
        InfoCollectorTopic.RESET_ERRORS,
    ],
)
def test_other_commands_are_not_there_either(agent, topic):
    reply = agent._dispatch_request(new_cell_message({}, Command(topic=topic, body="{}")))
    assert reply.payload.body == "invalid_request"


def test_what_is_left_is_what_a_job_needs(agent):
    assert set(agent.processors) == {
        "scheduler.check_resource",
        "scheduler.cancel_resource",
        "train.deploy",
        "train.start_job",
        "train.abort",
        "train.notify_job_status",
        "train.check_status",
        "train.shutdown",
        "train.restart",
    }


def test_a_processor_that_does_one_thing_more_is_out():
    class Both:
        def get_topics(self):
            return [TrainingTopic.DEPLOY, SysCommandTopic.SHELL]

    made = [Both()]
    gates.keep_site_commands(made)
    assert made == []


# -- who is heard at a hospital --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "channel", [CellChannel.CLIENT_MAIN, CellChannel.AUX_COMMUNICATION, "_net_manager", "cordon_attest"]
)
@pytest.mark.parametrize(
    "origin", [ROGUE, f"{ROGUE}.{JOB}", CONSOLE, f"{VICTIM}.{JOB}", VICTIM, f"{VICTIM}x", "serverx"]
)
def test_a_hospital_hears_no_other_member_through_the_server(victim, origin, channel):
    assert not victim.get(origin, VICTIM, "server", "N/A", channel=channel)


def test_a_hospital_hears_no_other_member_directly(victim):
    for origin in (ROGUE, "server", f"server.{JOB}", VICTIM):
        assert not victim.get(origin, VICTIM, ROGUE, ROGUE)


def test_a_hospital_is_no_way_to_its_own_jobs(victim):
    assert not victim.get(ROGUE, f"{VICTIM}.{JOB}", "server", "N/A")


def test_a_reply_of_a_stranger_is_not_looked_at(victim, monkeypatch):
    looked = []
    monkeypatch.setattr(victim.cell, "_process_reply", lambda *a: looked.append(a))
    victim.get(ROGUE, VICTIM, "server", "N/A", kind=MessageType.REPLY)
    assert looked == []
    victim.get("server", VICTIM, "server", "N/A", kind=MessageType.REPLY)
    assert len(looked) == 1


def test_a_hospital_makes_no_connection_to_an_address_in_a_peers_message(victim, monkeypatch):
    """FLARE connects to the CONN_URL of any forwarded message that it takes."""
    opened = []
    monkeypatch.setattr(victim.cell, "_add_adhoc_connector", lambda *a: opened.append(a))
    message = new_cell_message({MessageHeaderKey.CONN_URL: "tcp://10.0.0.1:22"}, b"x")
    message.add_headers(
        {
            MessageHeaderKey.MSG_TYPE: MessageType.REQ,
            MessageHeaderKey.CHANNEL: "c",
            MessageHeaderKey.TOPIC: "t",
            MessageHeaderKey.ORIGIN: ROGUE,
            MessageHeaderKey.DESTINATION: VICTIM,
            MessageHeaderKey.FROM_CELL: "server",
        }
    )
    victim.cell.process_message(Endpoint("server"), None, 0, message)
    assert opened == []


def test_a_payload_of_a_stranger_is_not_decoded(victim, monkeypatch):
    decoded = []
    monkeypatch.setattr("nvflare.fuel.f3.cellnet.core_cell.decode_payload", lambda *a, **k: decoded.append(a))
    victim.get(ROGUE, VICTIM, "server", "N/A")
    assert decoded == []
    victim.get("server", VICTIM, "server", "N/A")
    assert len(decoded) == 1


def test_a_hospital_hears_the_coordinator_and_its_own_jobs(victim):
    assert victim.get("server", VICTIM, "server", "N/A")
    assert victim.get(f"server.{JOB}", VICTIM, "server", "N/A")
    assert victim.get(f"{VICTIM}.{JOB}", VICTIM, f"{VICTIM}.{JOB}", None)
    assert victim.get(f"{VICTIM}.{JOB}", "server", f"{VICTIM}.{JOB}", None)  # passed on
    assert victim.get("server", f"{VICTIM}.{JOB}", "server", "N/A")


# -- what the coordinator passes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MessageType.REQ, MessageType.REPLY, MessageType.RETURN])
@pytest.mark.parametrize("destination", [VICTIM, f"{VICTIM}.{JOB}", CONSOLE])
@pytest.mark.parametrize("origin", [ROGUE, f"{ROGUE}.{JOB}", "server", f"server.{JOB}", VICTIM, CONSOLE])
def test_a_member_reaches_no_other_member(server, origin, destination, kind):
    assert not server.get(origin, destination, ROGUE, ROGUE, kind=kind)
    assert server.passed_on == []


@pytest.mark.parametrize("origin", ["server", f"server.{JOB}", VICTIM, f"{VICTIM}.{JOB}", CONSOLE, f"{ROGUE}x"])
@pytest.mark.parametrize("neighbour", [ROGUE, "server", f"server.{JOB}", VICTIM])
def test_a_member_speaks_as_nobody_else_to_the_coordinator(server, origin, neighbour):
    """Whatever its connection calls itself: the certificate counts."""
    assert not server.get(origin, "server", neighbour, ROGUE, channel=CellChannel.SERVER_MAIN)
    assert server.heard == []


def test_an_admin_reaches_no_hospital_and_speaks_as_none(server):
    assert not server.get(CONSOLE, VICTIM, CONSOLE, ADMIN)
    for origin in ("server", VICTIM, f"{VICTIM}.{JOB}"):
        assert not server.get(origin, "server", origin, ADMIN)


def test_a_connection_without_certificate_is_the_coordinators_own_process(server):
    assert server.get(f"server.{JOB}", VICTIM, f"server.{JOB}", None)
    for origin, neighbour in ((VICTIM, VICTIM), ("server", VICTIM), (VICTIM, f"server.{JOB}")):
        assert not server.get(origin, "server", neighbour, None)


def test_honest_traffic_passes_the_coordinator(server):
    for name in HOSPITALS:
        assert server.get(name, "server", name, name, channel=CellChannel.SERVER_MAIN)
        assert server.get(f"{name}.{JOB}", f"server.{JOB}", f"{name}.{JOB}", name)
        assert server.get(f"{name}.{JOB}", name, f"{name}.{JOB}", name)
    assert server.get(CONSOLE, "server", CONSOLE, ADMIN)


@pytest.mark.parametrize("header", [MessageHeaderKey.ORIGIN, MessageHeaderKey.DESTINATION])
@pytest.mark.parametrize("value", [7, ["server"], {"a": 1}])
def test_a_name_of_another_type_is_refused(server, victim, header, value):
    for desk in (server, victim):
        names = {MessageHeaderKey.ORIGIN: "server", MessageHeaderKey.DESTINATION: VICTIM, header: value}
        assert not desk.get(*names.values(), "server", "server")


def test_refusals_do_not_fill_the_log(victim, caplog):
    for _ in range(50):
        victim.get(ROGUE, VICTIM, "server", "N/A")
    assert len([record for record in caplog.records if "refused a message" in record.getMessage()]) == 1
    for number in range(gates.MAX_SAID + 50):
        victim.get(f"{ROGUE}.{number}", VICTIM, "server", "N/A")
    assert len([record for record in caplog.records if "refused a message" in record.getMessage()]) == gates.MAX_SAID
