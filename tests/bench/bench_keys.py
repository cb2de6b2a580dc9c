"""Keys that follow attestation: how fast the broker releases them, and what sealing costs over bare AES-256-GCM.

    PYTHONPATH=custom python tests/bench/bench_keys.py [--json] [--only broker,vault,sealing] [--seconds 20]

The broker is ``cordon broker`` in a process of its own, on one core (the first of those that this process may use),
with two tenants, software evidence, its databases below ``--folder``; the clients are this process, on the other cores,
over TLS 1.3 on the loopback. Each pair (challenge, then release) is of a fresh job process, so each release is charged.

* ``release_ms``       challenge + release over a new TLS connection, one after the other: what a client waits for in
                       all, without making evidence. Median. ``release_kept_ms``: over a connection kept alive
* ``broker_rps``       requests answered per second when ``--rate`` are offered: pairs start by the clock, whatever came
                       of those before (open loop). The lesser of two runs, over new connections and over kept ones
* ``broker_p99_ms``    99th percentile of a request's time from when it was due (a challenge: connecting and the
                       handshake included) to its answer, over new connections; ``broker_p99_kept_ms``: over kept ones
* ``broker_releases_s`` full releases per second at most: ``CLIENTS`` clients in a closed loop over kept connections
* ``broker_errors``    requests of the open loop that got no answer or a refusal

* ``vault_ratio``      ``AESGCM.decrypt`` of the same chunks in memory, over reading the vault's file (time over time:
                       above 1 the vault is faster); ``vault_ratio_reused``: against ``decrypt_into`` one buffer
* ``vault_peak_mib``   what reading adds to a process's memory at most: {size of the member in MiB: MiB}
* ``seal_ratio``       ``sealing.seal`` of ``--update-mb`` MB over ``AESGCM.encrypt`` of them at once; ``open_ratio``
                       likewise; ``seal_hash_ratio``: with SHA-256 of what is sent, which an update's header names

Ratios are medians of turns taken alternately. Nothing is judged here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cordon import messages, sealing
from cordon.broker import tls
from cordon.broker.client import BrokerClient
from cordon.cli import main as cordon
from cordon.data import vault
from cordon.errors import BrokerUnavailable, Refused
from cordon.stream import nonce
from fakes.broker_ward import Served, Ward
from fakes.key_broker import OTHER, SITE, Process

CLIENTS = 16
WORKERS = 16  # of the open loop: more pairs than these under way wait, and their wait counts
MIB = 1024**2


# -- broker ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def broker(folder: Path, core: int) -> Iterator[tuple[Ward, Served, str]]:
    """A broker process on ``core``, and the pin of its TLS key."""
    ward = Ward(folder)
    ward.tree["limits"] = {"requests_per_s": 10_000.0, "burst": 100_000, "connections": 1024}
    for tenant in ward.tree["tenants"]:
        tenant["gate"] = {"max_releases": 10**9, "epsilon": 1e12, "delta": 1e-5}
    ward.write()
    config = ["--config", str(ward.config)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cordon(["broker", "init", "--tls", "broker.example", *config]) == 0
        for site in (SITE, OTHER):
            sealed = ["--vault", str(folder / "data.vault"), "--key", str(folder / "vault.key")]
            assert cordon(["broker", "add", "--tenant", site, *config, *sealed]) == 0
    with ward.serving(cores={core}) as served:
        yield ward, served, tls.pin_of(tls.load_certificate(folder / "tls.crt"))
        served.process.terminate()
        served.process.wait(30)
    ward.hospitals.close()


def pair(client: BrokerClient, process: Process, due: float | None = None) -> tuple[float, float]:
    """(seconds of the challenge since ``due``, of the release); the evidence between is not counted."""
    began = time.perf_counter() if due is None else due
    challenge = client.challenge(process.job)
    challenged = time.perf_counter() - began
    asked = process.asks(challenge)
    began = time.perf_counter()
    client.release(asked.evidence, asked.request)
    return challenged, time.perf_counter() - began


def one_by_one(ward: Ward, served: Served, pin: str, repeat: int) -> dict[str, float]:
    """Medians of pairs that take turns: over a new connection, and over one that is kept."""
    kept, fresh = served.client(pin), served.client(pin)
    pair(kept, ward.process())
    turns = []
    for _ in range(repeat):
        fresh.close()
        turns.append((sum(pair(fresh, ward.process())), sum(pair(kept, ward.process()))))
    new, reused = (1000 * median(column) for column in zip(*turns, strict=True))
    return {"release_ms": new, "release_kept_ms": reused}


def open_loop(ward: Ward, served: Served, pin: str, rate: float, seconds: float, keep: bool) -> dict[str, Any]:
    """``rate`` requests per second for ``seconds``: pairs that start by the clock, of two sites in turn."""
    count = round(rate * seconds / 2)
    processes = [ward.process((SITE, OTHER)[index % 2], job=f"job-{index}") for index in range(count)]
    due: queue.SimpleQueue[tuple[float, Process] | None] = queue.SimpleQueue()
    took: list[float] = []
    errors: list[str] = []

    def work() -> None:
        clients = {site: served.client(pin, site) for site in (SITE, OTHER)}
        while (item := due.get()) is not None:
            at, process = item
            client = clients[process.site]
            try:
                took.extend(pair(client, process, at))
            except (BrokerUnavailable, Refused) as error:
                errors.append(str(error))
            if not keep:
                client.close()
        for client in clients.values():
            client.close()

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    began = time.perf_counter()
    for index, process in enumerate(processes):
        at = began + 2 * index / rate
        time.sleep(max(0.0, at - time.perf_counter()))
        due.put((at, process))
    for _ in workers:
        due.put(None)
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - began
    return {
        "rps": len(took) / elapsed,
        "p99_ms": percentile(took, 99),
        "p50_ms": percentile(took, 50),
        "errors": errors,
    }


def closed_loop(ward: Ward, served: Served, pin: str, seconds: float) -> float:
    """Releases per second of ``CLIENTS`` clients that ask one after the other."""
    done: list[int] = []
    end = time.perf_counter() + seconds

    def work(site: str, job: str) -> None:
        client, count = served.client(pin, site), 0
        while time.perf_counter() < end:
            pair(client, ward.process(site, job))
            count += 1
        client.close()
        done.append(count)

    workers = [
        threading.Thread(target=work, args=((SITE, OTHER)[index % 2], f"job-{index}")) for index in range(CLIENTS)
    ]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began)


def percentile(seconds: list[float], which: int) -> float:
    """In milliseconds."""
    return 1000 * quantiles(seconds, n=100, method="inclusive")[which - 1]


def measure_broker(folder: Path, rate: float, seconds: float, repeat: int) -> dict[str, Any]:
    """Figures of the broker."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    try:
        with broker(folder, cores[0]) as (ward, served, pin):
            found: dict[str, Any] = one_by_one(ward, served, pin, repeat)
            kept = open_loop(ward, served, pin, rate, seconds, keep=True)
            fresh = open_loop(ward, served, pin, rate, seconds, keep=False)
            releases = closed_loop(ward, served, pin, min(seconds, 10.0))
    finally:
        os.sched_setaffinity(0, set(cores))
    return {
        **found,
        "broker_rps": min(kept["rps"], fresh["rps"]),
        "broker_p99_ms": fresh["p99_ms"],
        "broker_p50_ms": fresh["p50_ms"],
        "broker_p99_kept_ms": kept["p99_ms"],
        "broker_p50_kept_ms": kept["p50_ms"],
        "broker_releases_s": releases,
        "broker_errors": len(kept["errors"]) + len(fresh["errors"]),
        "broker_cores": {"broker": 1, "clients": max(1, len(cores) - 1)},
    }


# -- vault -----------------------------------------------------------------------------------------------------------

READER = """
import sys
from pathlib import Path
from cordon.data import vault
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
buffer = bytearray(vault.DEFAULT_CHUNK)
open("/proc/self/clear_refs", "w").write("5")  # forget what imports needed
idle = high_water()
with vault.Vault(Path(sys.argv[1]), bytes(32)) as opened, opened.open("m") as file:
    while file.readinto(buffer):
        pass
print((high_water() - idle) / 1024)
"""


class Zeros:
    """A file of ``left`` zero bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def read(self, size: int) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def measure_vault(folder: Path, mib: int, peaks: tuple[int, ...], repeat: int) -> dict[str, Any]:
    """Figures of reading a vault."""
    key, path, chunk = bytes(32), folder / "vault", vault.DEFAULT_CHUNK
    vault.seal([("m", Zeros(mib * MIB))], path, key)  # type: ignore[list-item]
    cipher, count = AESGCM(key), mib * MIB // chunk
    pieces = [cipher.encrypt(nonce(at, at == count - 1), bytes(chunk), None) for at in range(count)]
    buffer = bytearray(chunk)

    def bare() -> None:
        for at, piece in enumerate(pieces):
            cipher.decrypt(nonce(at, at == count - 1), piece, None)

    def reused() -> None:
        for at, piece in enumerate(pieces):
            cipher.decrypt_into(nonce(at, at == count - 1), piece, None, buffer)

    def read() -> None:
        with vault.Vault(path, key) as opened, opened.open("m") as file:
            while file.readinto(buffer):
                pass

    ratios = in_turns(repeat, bare, read, reused)
    peak = {}
    for size in peaks:
        sealed = folder / f"vault-{size}"
        vault.seal([("m", Zeros(size * MIB))], sealed, key)  # type: ignore[list-item]
        done = subprocess.run([sys.executable, "-c", READER, str(sealed)], check=True, capture_output=True, text=True)
        peak[str(size)] = round(float(done.stdout), 2)
        sealed.unlink()
    bare_s, read_s, reused_s = ratios
    return {
        "vault_ratio": bare_s / read_s,
        "vault_ratio_reused": reused_s / read_s,
        "vault_read_gb_s": mib * MIB / read_s / 1e9,
        "vault_peak_mib": peak,
    }


# -- sealing ---------------------------------------------------------------------------------------------------------


def measure_sealing(megabytes: int, repeat: int) -> dict[str, Any]:
    """Figures of sealing an update."""
    update, header = os.urandom(megabytes * 10**6), b"header" * 100
    keys, cipher = sealing.KemKey.generate(), AESGCM(bytes(32))
    public = sealing.decode_kem_key(keys.public_bytes)
    sealed = sealing.seal(update, public, "bench", header)
    encrypted = cipher.encrypt(bytes(12), update, header)

    def hashed() -> None:
        messages.sha256(sealing.seal(update, public, "bench", header))

    encrypt_s, seal_s, hashed_s, decrypt_s, open_s = in_turns(
        repeat,
        lambda: cipher.encrypt(bytes(12), update, header),
        lambda: sealing.seal(update, public, "bench", header),
        hashed,
        lambda: cipher.decrypt(bytes(12), encrypted, header),
        lambda: sealing.open_sealed(sealed, keys.private, "bench", header),
    )
    return {
        "seal_ratio": seal_s / encrypt_s,
        "seal_hash_ratio": hashed_s / encrypt_s,
        "open_ratio": open_s / decrypt_s,
        "seal_ms": 1000 * seal_s,
        "seal_mb": megabytes,
    }


def in_turns(repeat: int, *runs: Callable[[], object]) -> list[float]:
    """Median seconds of each of ``runs``, which take turns, after one turn that warms up."""
    turns = []
    for _ in range(repeat + 1):
        turn = []
        for run in runs:
            began = time.perf_counter()
            run()
            turn.append(time.perf_counter() - began)
        turns.append(turn)
    return [median(column) for column in zip(*turns[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--only", default="broker,vault,sealing", help="parts, with commas (default: all)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests offered per second (default: 100)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each open loop (default: 20)")
    parser.add_argument("--repeat", type=int, default=101, help="pairs one by one (default: 101)")
    parser.add_argument("--turns", type=int, default=5, help="of vault and sealing (default: 5)")
    parser.add_argument("--vault-mib", type=int, default=256, help="bytes read (default: 256 MiB)")
    parser.add_argument("--peak-mib", default="64,512", help="sizes at which memory is taken (default: 64,512)")
    parser.add_argument("--update-mb", type=int, default=100, help="bytes sealed (default: 100 MB)")
    parser.add_argument("--folder", type=Path, help="where databases and vaults go (default: the system's)")
    args = parser.parse_args()
    parts, result = args.only.split(","), {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if "broker" in parts:
            result |= measure_broker(folder, args.rate, args.seconds, args.repeat)
        if "vault" in parts:
            peaks = tuple(int(each) for each in args.peak_mib.split(","))
            result |= measure_vault(folder, args.vault_mib, peaks, args.turns)
        if "sealing" in parts:
            result |= measure_sealing(args.update_mb, args.turns)
    result = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
    if args.json:
        print(json.dumps(result | {"measured": datetime.now(UTC).isoformat(timespec="seconds")}))
        return
    for key, value in result.items():
        print(f"{key:20} {value}")


if __name__ == "__main__":
    main()
