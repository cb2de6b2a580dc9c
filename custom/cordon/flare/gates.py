"""What a parent process lets in over FLARE's cells: who may speak, and what a hospital answers at all.

FLARE lets every member send to every other through the server. A site answers administrative commands (read a file,
shut down, delete a run) to whoever asks: it looks at roles only if the sender's own headers say so, and the origin of
a message is the sender's word. So:

* the coordinator passes on a message only if its origin belongs to the certificate of the connection that brought it,
  and only to itself or back into that family: nobody speaks as another, no member speaks to another;
* a hospital hears the coordinator over the coordinator's connection and its own processes, nobody else;
* a hospital has the commands of a job's life and no other, whoever asks, the coordinator included.

Refused messages are dropped before they are decoded, and get no answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from nvflare.fuel.f3.cellnet.core_cell import CoreCell, Message
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.private.defs import TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from cordon.flare.kit import Kit

SITE_COMMANDS = frozenset(
    {
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.CANCEL_RESOURCE,
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.ABORT,
        TrainingTopic.NOTIFY_JOB_STATUS,  # from the site's own job process
        TrainingTopic.CHECK_STATUS,  # names of running jobs, for the console
        TrainingTopic.SHUTDOWN,
        TrainingTopic.RESTART,
    }
)
"""All that a hospital does on request. Not here: shell, delete_run, info.* and error collectors (free text of the
site's log), log levels, system and environment reports."""

MAX_SAID = 1000  # refusals are logged once per speaker, and a speaker chooses its name

Rule = Callable[[str, str, str, str | None], bool]
"""(origin, destination, neighbour: who brought it, CN of the neighbour's certificate if any) -> let in."""


def install(kit: Kit, cell: CoreCell, logger: logging.Logger) -> None:
    """Put the gates of this side onto ``cell``. FLARE reads the list of commands after SYSTEM_BOOTSTRAP."""
    if kit.role == "hospital":
        keep_site_commands(ClientRequestProcessors.request_processors)
        rule = hospital_rule(FQCN.get_root(cell.get_fqcn()))
    else:
        rule = coordinator_rule(kit.study.coordinator.name, [hospital.name for hospital in kit.study.roster])
    # An incoming filter, not a request filter: it runs before the payload is decoded and before a forwarded message
    # can make this cell connect to an address that its sender names. No other filter is on a parent's cell under a
    # narrower key, which would hide this one.
    cell.add_incoming_filter("*", "*", Gate(rule, logger).refuse)


def keep_site_commands(processors: list[RequestProcessor]) -> None:
    """Take out, in place, every processor that answers to any topic beyond ``SITE_COMMANDS``."""
    processors[:] = [each for each in processors if SITE_COMMANDS.issuperset(each.get_topics())]


class Gate:
    """A rule as the filter of a cell."""

    def __init__(self, rule: Rule, logger: logging.Logger) -> None:
        self._rule = rule
        self._logger = logger
        self._said: set[tuple[str, str | None]] = set()

    def refuse(self, message: Message) -> Message | None:
        """None lets ``message`` in; a reply drops it."""
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        destination = message.get_header(MessageHeaderKey.DESTINATION)
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        holder = message.get_prop(MessagePropKey.COMMON_NAME)
        named = isinstance(origin, str) and isinstance(destination, str) and endpoint is not None
        if named and self._rule(origin, destination, str(endpoint.name), holder):
            return None
        key = (repr(origin)[:128], holder)
        if key not in self._said and len(self._said) < MAX_SAID:
            self._said.add(key)
            self._logger.error(
                f"refused a message of {key[0]} to {destination!r:.128}, brought by {holder or 'a local connection'}"
            )
        return make_reply(ReturnCode.UNAUTHENTICATED, "this member takes no messages from there")


def hospital_rule(own: str) -> Rule:
    """At hospital ``own``: the coordinator over its own connection, and this hospital's processes over theirs."""

    def rule(origin: str, _destination: str, neighbour: str, _holder: str | None) -> bool:
        return any(_within(origin, family) and _within(neighbour, family) for family in (FQCN.ROOT_SERVER, own))

    return rule


def coordinator_rule(coordinator: str, hospitals: Iterable[str]) -> Rule:
    """At the coordinator: nobody speaks as another, nobody speaks to another member.

    Args:
        coordinator: CN of the coordinator's certificate.
        hospitals: names of the roster, which are the CNs of their certificates and the roots of their cells.
    """
    members = frozenset(hospitals)

    def rule(origin: str, destination: str, neighbour: str, holder: str | None) -> bool:
        if holder is None:  # the internal listener (this host only): the coordinator's own job processes
            return _within(origin, FQCN.ROOT_SERVER) and _within(neighbour, FQCN.ROOT_SERVER)
        if holder == coordinator:
            return _within(origin, FQCN.ROOT_SERVER)
        if holder in members:
            speaks = _within(origin, holder)
        else:  # an admin's console: its cell has a random name
            speaks = not any(_within(origin, name) for name in (FQCN.ROOT_SERVER, *members))
        return speaks and FQCN.get_root(destination) in (FQCN.ROOT_SERVER, FQCN.get_root(origin))

    return rule


def _within(name: str, family: str) -> bool:
    return name == family or name.startswith(family + FQCN.SEPARATOR)
