"""Reading a vault against bare AES-GCM over the same bytes, in one run on one core (best of ``--repeat``).

    PYTHONPATH=custom python tests/bench/bench_vault.py [--json] [--repeat 5] [--mib 256] [--chunk 262144]

* ``vault_ratio``          time of ``AESGCM.decrypt`` over the chunks in memory, over that of reading the vault's file
* ``vault_ratio_reused``   the same with ``decrypt_into`` one buffer: the floor, no byte is allocated or copied
* ``vault_ratio_one_shot`` the same with one ``AESGCM.decrypt`` of all bytes at once
* ``seal_gb_s``, ``read_gb_s``, ``lines_gb_s``  what sealing, reading and reading line by line reach
* ``open_ms``              opening it: header, tag, directory
* ``peak_mib``             memory that reading adds to a process at most (VmHWM), at full and at 1/16 size
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cordon.data import vault
from cordon.stream import nonce

READER = """
from pathlib import Path
from cordon.data import vault
buffer = bytearray({chunk})
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
open("/proc/self/clear_refs", "w").write("5")  # forget what imports needed
idle = high_water()
with vault.Vault(Path({path!r}), bytes(32)) as opened:
    with opened.open("m") as file:
        while file.readinto(buffer): pass
    with opened.open("m") as file:
        while file.read(1000): file.seek(1_000_003, 1)
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


def best(repeat: int, run: Callable[[], object]) -> float:
    """Least seconds of ``repeat`` runs after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def peak(path: Path, chunk: int) -> float:
    """MiB that reading the vault at ``path``, streaming and at random, adds to a fresh process."""
    code = READER.format(path=str(path), chunk=chunk)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure(size: int, chunk: int, repeat: int, folder: Path) -> dict[str, float]:
    """All figures for a member of ``size`` bytes."""
    key, path = bytes(32), folder / "v"
    began = time.perf_counter()
    vault.seal([("m", Zeros(size))], path, key, chunk=chunk)  # type: ignore[list-item]
    sealed_s = time.perf_counter() - began
    vault.seal([("m", Zeros(size // 16))], folder / "small", key, chunk=chunk)  # type: ignore[list-item]

    cipher, count = AESGCM(key), size // chunk
    pieces = [cipher.encrypt(nonce(at, at == count - 1), bytes(chunk), None) for at in range(count)]
    whole = cipher.encrypt(bytes(12), bytes(size), None)

    def bare() -> None:
        for at, piece in enumerate(pieces):
            cipher.decrypt(nonce(at, at == count - 1), piece, None)

    buffer = bytearray(chunk)

    def read() -> None:
        with vault.Vault(path, key) as opened, opened.open("m") as file:
            while file.readinto(buffer):
                pass

    def lines() -> None:
        with vault.Vault(path, key) as opened, opened.open("m") as file:
            while file.readline(4096):
                pass

    def opening() -> None:
        vault.Vault(path, key).close()

    def reused() -> None:
        for at, piece in enumerate(pieces):
            cipher.decrypt_into(nonce(at, at == count - 1), piece, None, buffer)

    bare_s, one_shot_s = best(repeat, bare), best(repeat, lambda: cipher.decrypt(bytes(12), whole, None))
    reused_s, read_s = best(repeat, reused), best(repeat, read)
    return {
        "vault_ratio": bare_s / read_s,
        "vault_ratio_reused": reused_s / read_s,
        "vault_ratio_one_shot": one_shot_s / read_s,
        "seal_gb_s": size / sealed_s / 1e9,
        "read_gb_s": size / read_s / 1e9,
        "lines_gb_s": size / best(1, lines) / 1e9,
        "open_ms": best(repeat, opening) * 1e3,
        "peak_mib": peak(path, chunk),
        "peak_mib_small": peak(folder / "small", chunk),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=vault.DEFAULT_CHUNK)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.mib * 1024**2, args.chunk, args.repeat, Path(folder))
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    else:
        for name, value in found.items():
            print(f"{name:<22}{value:10.3f}")


if __name__ == "__main__":
    main()
