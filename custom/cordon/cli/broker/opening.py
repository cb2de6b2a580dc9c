"""What every command of ``cordon broker`` begins with: configuration, key encryption key, tenants."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cordon import documents
from cordon.attest.verdict import printable
from cordon.broker.config import BrokerConfig, Tenant
from cordon.broker.keys import KeyEncryption, open_backend
from cordon.broker.tenant import TenantBroker
from cordon.errors import ConfigError


@dataclass(frozen=True)
class Setup:
    """A configuration and the folder against which its paths resolve."""

    settings: BrokerConfig
    base: Path

    @classmethod
    def load(cls, path: Path) -> Setup:
        """The configuration at ``path``."""
        return cls(documents.load(path, BrokerConfig), path.parent)

    @property
    def state(self) -> Path:
        return self.base / self.settings.state

    def tenant(self, name: str) -> Tenant:
        """The tenant called ``name``; ConfigError names those that there are."""
        for tenant in self.settings.tenants:
            if tenant.name == name:
                return tenant
        raise ConfigError(f"no tenant {name!r}; there are {', '.join(each.name for each in self.settings.tenants)}")

    @contextlib.contextmanager
    def keys(self) -> Iterator[KeyEncryption]:
        """The key encryption key, open."""
        opened = open_backend(self.settings.keys, self.base)
        try:
            yield opened
        finally:
            opened.close()

    @contextlib.contextmanager
    def opened(self, tenant: Tenant, keys: KeyEncryption) -> Iterator[TenantBroker]:
        """The broker of ``tenant``, beside a running server or without one."""
        broker = TenantBroker.open(tenant, self.base, self.state, keys, now())
        try:
            yield broker
        finally:
            broker.close()


def now() -> datetime:
    """The clock of all commands."""
    return datetime.now(UTC)


def show(args: argparse.Namespace, document: Any, lines: list[str]) -> None:
    """``document`` with --json, else ``lines``."""
    if args.json:
        print(json.dumps(document), flush=True)
    else:
        print("\n".join(printable(line) for line in lines), flush=True)
