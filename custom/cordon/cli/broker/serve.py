"""``cordon broker serve``: check everything, listen, log, stop in order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.attest.verdict import printable
from cordon.broker import tls
from cordon.broker.keys import KeyEncryption
from cordon.broker.server import BrokerServer, Event
from cordon.broker.tenant import TenantBroker
from cordon.cli.broker.opening import Setup, now, show
from cordon.errors import ConfigError, CordonError

T = TypeVar("T")

SPARE_FILES = 64  # beside connections: databases and their logs, the standard streams, libraries


class _Problems:
    """Collects what is wrong, so that one start tells all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def attempt(self, what: Callable[[], T], where: str = "") -> T | None:
        try:
            return what()
        except CordonError as error:
            self.found.append(f"{where}{error}")
            return None


def serve(args: argparse.Namespace) -> int:
    """Run until a signal. Everything is checked before the port opens, and all that is wrong is said at once."""
    setup = Setup.load(args.config)
    problems, limits = _Problems(), setup.settings.limits
    with contextlib.ExitStack() as stack:
        names = setup.settings.tls
        certificate, key, client_ca = (setup.base / each for each in (names.certificate, names.key, names.client_ca))
        context = problems.attempt(lambda: tls.server_context(certificate, key, client_ca))
        pin = problems.attempt(lambda: _pin(certificate))
        problems.attempt(lambda: _allow_files(limits.connections))
        keys = problems.attempt(lambda: stack.enter_context(setup.keys()))
        members = {} if keys is None else _members(setup, keys, stack, problems)
        if problems.found or context is None:
            raise ConfigError("the broker does not start:\n" + "\n".join(f"- {each}" for each in problems.found))
        for tenant in setup.settings.tenants:
            _warn(tenant.name, documents.load(setup.base / tenant.attestation, AttestationPolicy), args.json)
        importlib.import_module("cordon.dp.accounting")  # scipy: the first release would wait for it
        server = BrokerServer(members, context, limits, now, _log_json if args.json else _log)
        asyncio.run(_run(server, setup, args, str(pin)))
    return 0


def _members(
    setup: Setup, keys: KeyEncryption, stack: contextlib.ExitStack, problems: _Problems
) -> dict[str, TenantBroker]:
    """mTLS key -> the one tenant whose site has it."""
    members: dict[str, TenantBroker] = {}
    for tenant in setup.settings.tenants:
        opening = setup.opened(tenant, keys)
        broker = problems.attempt(functools.partial(stack.enter_context, opening), f"tenant {tenant.name}: ")
        if broker is None:
            continue
        if broker.site_spki in members:
            problems.found.append(
                f"tenants {members[broker.site_spki].name} and {tenant.name} have the same mTLS key, by which alone a "
                "client is known: run a broker for each"
            )
        members[broker.site_spki] = broker
    return members


def _warn(tenant: str, policy: AttestationPolicy, as_json: bool) -> None:
    """Say so if an allow-list still holds zeros only, as the shipped policies do: no process can pass."""
    sections = {"software": "measurement", "snp": "measurement", "tdx": "mr_td", "sgx": "mr_enclave"}
    for section, field in sections.items():
        allowed = getattr(getattr(policy, section), field, ())
        if isinstance(allowed, tuple) and allowed and not any(value.strip("0") for value in allowed):
            said = (
                f"attestation policy {policy.name}: {section}.{field} allows zeros only, so such evidence never passes"
            )
            if as_json:
                _write(json.dumps({"time": now().isoformat(), "tenant": tenant, "code": "warning", "detail": said}))
            else:
                _write(printable(f"warning: tenant={tenant} {said}"))


async def _run(server: BrokerServer, setup: Setup, args: argparse.Namespace, pin: str) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def asked_to_stop(number: int) -> None:
        if stop.is_set():  # the second time: at once
            os._exit(128 + number)
        stop.set()

    host = setup.settings.listen.host
    port = await server.start(host, setup.settings.listen.port)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop, number)
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    tenants = [each.name for each in setup.settings.tenants]
    show(args, {"event": "listening", "url": url, "spki": pin, "tenants": tenants}, [f"listening on {url}"])
    await stop.wait()
    await server.stop()


def _pin(path: Path) -> str:
    certificate = tls.load_certificate(path)
    tls.check_period(certificate, now(), f"tls.certificate: {path}")
    return tls.pin_of(certificate)


def _allow_files(connections: int) -> None:
    """Room for twice ``connections`` (in their handshake, established) among the process's open files."""
    wanted = 2 * connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"limits.connections: {connections} want {wanted} open files, this process may have {hard}; lower it, or "
            "raise the limit (systemd: LimitNOFILE=)"
        )
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fields(event: Event) -> dict[str, str | int]:
    time = event.time.isoformat(timespec="milliseconds")
    said: dict[str, str | int] = {"time": time, "tenant": event.tenant, "client": event.client, "path": event.path}
    return {**said, "status": event.status, "code": event.code, "lease": event.lease, "detail": event.detail}


def _log_json(event: Event) -> None:
    _write(json.dumps(_fields(event)))


def _log(event: Event) -> None:
    values = _fields(event) | {"client": event.client[:16]}
    _write(printable(" ".join(f"{name}={value}" for name, value in values.items() if value != "")))


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk or a closed pipe under the log must not stop the answers
        print(line, file=sys.stderr, flush=True)
