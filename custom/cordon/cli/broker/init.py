"""``cordon broker init``: the keys and the state that a broker begins with."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cordon import new_file, signing
from cordon.broker import identity, state, tls
from cordon.broker.config import Tenant
from cordon.broker.files import make_private
from cordon.broker.keys import FileKeys, KeyEncryption, Pkcs11Keys, create_file_kek
from cordon.cli.broker.opening import Setup, now, show
from cordon.errors import ConfigError


def init(args: argparse.Namespace) -> int:
    """Make what is asked for and what is missing; say all that others need to know of it."""
    setup = Setup.load(args.config)
    make_private(setup.state)
    if args.kek:
        _make_kek(setup)
    said: dict[str, Any] = {"kek": args.kek, "tenants": {}}
    lines: list[str] = []
    if args.tls is not None:
        _make_tls(setup, args.tls, args.days)
    certificate = setup.base / setup.settings.tls.certificate
    said["spki"] = tls.pin_of(tls.load_certificate(certificate)) if certificate.exists() else None
    if said["spki"] is None:
        lines.append(f"no TLS certificate ({certificate}): make one with --tls NAME, or put yours there")
    else:
        done = "is there already" if args.tls is None else "made"
        lines.append(f"TLS key {done}; for every site policy:\n  broker.spki: {said['spki']}")
    with setup.keys() as keys:
        for tenant in setup.settings.tenants:
            made, spki = _identity(setup, tenant, keys)
            said["tenants"][tenant.name] = {"site": tenant.site, "broker_spki": spki, "made": made}
            lines.append(f"tenant {tenant.name}: key {'made' if made else 'is there already'}; for the study contract:")
            lines.append(f"  {tenant.site}: broker_spki: {spki}")
    show(args, said, [part for line in lines for part in line.split("\n")])
    return 0


def _make_kek(setup: Setup) -> None:
    keys = setup.settings.keys
    if isinstance(keys, FileKeys):
        create_file_kek(setup.base / keys.path, keys.passphrase.read("passphrase", setup.base, os.environ))
    elif isinstance(keys, Pkcs11Keys):
        from cordon.broker.keys.hsm import create_pkcs11_kek

        create_pkcs11_kek(keys, setup.base)
    else:
        raise ConfigError(
            "--kek: a key of HashiCorp Vault is made there, not here (`vault write -f transit/keys/NAME`)"
        )


def _make_tls(setup: Setup, name: str, days: int) -> None:
    if not 1 <= days <= 3650:
        raise ConfigError(f"--days: {days}, want 1 to 3650")
    files = setup.settings.tls
    certificate, key = tls.make_certificate([name], now(), days)
    new_file.write(setup.base / files.key, key)
    new_file.write(setup.base / files.certificate, certificate, 0o644)


def _identity(setup: Setup, tenant: Tenant, keys: KeyEncryption) -> tuple[bool, str]:
    """(made now, the long-lived key's SPKI)."""
    path = state.database(setup.state, tenant.name)
    if not path.exists():
        return True, identity.init(tenant, setup.base, setup.state, keys, now())
    opened = state.State(path)
    try:
        with opened.reading() as db:
            return False, signing.encode_spki(identity.signing_key(db, tenant.name, keys).public_key())
    finally:
        opened.close()
