"""The configuration of the key store (``keys`` in ``broker.yml``) and the backend that it names.

Paths resolve against the folder of the configuration file. The libraries of PKCS#11 and Vault are loaded when used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from cordon.broker.keys.encrypted_file import FileKek
from cordon.broker.keys.secret import Secret
from cordon.broker.keys.wrapped import KeyEncryption, Random, check_backend
from cordon.documents import Document

Text = Annotated[str, Meta(min_length=1, max_length=128)]


class FileKeys(Document, frozen=True, kw_only=True, tag_field="backend", tag="file"):
    """The KEK file at ``path``, made by ``create_file_kek``."""

    path: Annotated[str, Meta(min_length=1)]
    passphrase: Secret


class Pkcs11Keys(Document, frozen=True, kw_only=True, tag_field="backend", tag="pkcs11"):
    """An AES-256 key ``key_label`` in token ``token_label``. ``module``: the vendor's PKCS#11 library, which runs in
    the broker's process. The label of a token has at most 32 bytes (PKCS#11 2.40, CK_TOKEN_INFO)."""

    module: Annotated[str, Meta(min_length=1)]
    token_label: Annotated[str, Meta(min_length=1, max_length=32)]
    key_label: Text
    pin: Secret


class VaultTransit(Document, frozen=True, kw_only=True, tag_field="backend", tag="hashicorp-vault"):
    """Key ``key_name`` of a transit engine mounted at ``mount``. ``ca``: PEM of what issued the server's certificate.
    Tested against OpenBao only. ``token`` is read anew for each request, so that an agent may renew it."""

    url: Annotated[str, Meta(pattern=r"\Ahttps://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?\Z")]
    mount: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\Z", max_length=128)] = "transit"
    key_name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,128}\Z")]
    token: Secret
    ca: Annotated[str, Meta(min_length=1)]
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0


KeyBackend = FileKeys | Pkcs11Keys | VaultTransit


def open_backend(
    config: KeyBackend, folder: Path, environ: Mapping[str, str] = os.environ, random: Random = os.urandom
) -> KeyEncryption:
    """The backend of ``config``, which has wrapped and unwrapped a probe.

    Raises:
        ConfigError: it cannot be reached, is misconfigured, or does not do what the others do.
    """
    kek: KeyEncryption
    if isinstance(config, FileKeys):
        kek = FileKek(folder / config.path, config.passphrase.read("passphrase", folder, environ), random)
    elif isinstance(config, Pkcs11Keys):
        from cordon.broker.keys.hsm import Pkcs11Kek

        kek = Pkcs11Kek(
            folder / config.module,
            config.token_label,
            config.key_label,
            lambda: config.pin.read("PIN", folder, environ),
            random,
        )
    else:
        from cordon.broker.keys.transit import TransitKek

        kek = TransitKek(
            config.url,
            config.mount,
            config.key_name,
            lambda: config.token.read("token", folder, environ),
            folder / config.ca,
            config.timeout_s,
        )
    try:
        check_backend(kek, random)
    except BaseException:
        kek.close()
        raise
    return kek
