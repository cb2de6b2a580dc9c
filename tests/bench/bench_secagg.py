"""Secure aggregation against the AES-128-CTR keystream that it needs, in one run on one core (best of ``--repeat``).

    PYTHONPATH=custom python tests/bench/bench_secagg.py [--clients 8] [--drop 1] [--dim 10000000] [--json] [--repeat 7]

One cohort of real members and the real aggregation (``cordon.secagg.client``, ``.server``), all messages signed and
checked; ``--drop`` sites are lost after they shared and before their vector came. Times are of the processor, each the
best of as many runs as the keystream that it is held against, which takes turns with it:

* ``client_ratio``   quantise and add all masks, of one site, over the keystream that this needs: one stream for each
  mask (a self mask and one for each other site) and one for the dither, 4 bytes a coordinate each. The keystream is
  timed at its fastest: in chunks of 256 KiB into one buffer, which never leave the cache.
* ``unmask_ratio``   put the secrets together from their shares, check them, take off the survivors' self masks and the
  pair masks of those lost, over the keystream of as many masks
* ``bytes_per_param``   payload of a masked vector over the coordinates
* ``server_extra_mb``   10^6 bytes that the aggregation holds at its peak, beside the payload that comes in: from the
  first payload to the opened mean, by tracemalloc (in a run of its own; it counts numpy's arrays)
* ``client_ratio_masks_only``   as ``client_ratio``, over the keystream of the masks without the dither's
* ``client_ratio_vectors``, ``unmask_ratio_vectors``   over a keystream that is written to a vector of its full size,
  in one call for each stream
* ``total_client_ratio``, ``total_unmask_ratio``   all of the site's step (shares opened, payload made, hashed, signed),
  all of the server's (decoded, too), over the same keystream as the first two
* ``..._ms``   the times themselves
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cordon.secagg import client, server
from fakes.secagg_cohort import NOW, Cohort, exact_vector, names

CHUNK = 256 * 1024
FIRST = bytes(16)


class Stopwatch:
    """Best seconds of each name."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}

    def note(self, name: str, seconds: float) -> None:
        self.best[name] = min(self.best.get(name, seconds), seconds)

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = run()
        self.note(name, time.process_time() - began)
        return result


@contextmanager
def timed(spent: list[float], *places: tuple[Any, str]) -> Iterator[None]:
    """Within, ``spent`` gets the seconds of each call of the functions at ``places`` (module, name)."""
    kept = [(module, name, getattr(module, name)) for module, name in places]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.process_time() - began)

        return call

    for module, name, function in kept:
        setattr(module, name, watched(function))
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def in_cache(streams: int, size: int) -> None:
    """``streams`` keystreams of ``size`` bytes, nothing of which is kept."""
    zeros, buffer = memoryview(bytes(CHUNK)), memoryview(bytearray(CHUNK))
    for number in range(streams):
        update = Cipher(algorithms.AES(number.to_bytes(16, "big")), modes.CTR(FIRST)).encryptor().update_into
        for left in range(size, 0, -CHUNK):
            update(zeros[:left], buffer)


def as_vectors(streams: int, zeros: bytes, vector: bytearray) -> None:
    """``streams`` keystreams, each written whole to ``vector``."""
    for number in range(streams):
        Cipher(algorithms.AES(number.to_bytes(16, "big")), modes.CTR(FIRST)).encryptor().update_into(zeros, vector)


class Federation:
    """Cohorts of the same ``clients`` sites, vectors (dim,) and losses: the last ``drop`` sites go before they mask."""

    def __init__(self, clients: int, drop: int, dim: int) -> None:
        self.dim, self.sites = dim, names(clients)
        self.vectors = {site: exact_vector(number, dim) for number, site in enumerate(self.sites)}
        self.gone = self.sites[clients - drop :]

    def cohort(self) -> Cohort:
        """A fresh one, in stage "masked"."""
        cohort = Cohort(self.sites, size=self.dim, vectors=self.vectors)
        cohort.run(until="masked")
        for site in self.gone:
            cohort.server.lost(site)
        return cohort


def finish(cohort: Cohort, last: Callable[[Callable[[], Any]], Any]) -> None:
    """From the last vector to the mean, the server's last step run by ``last``; exits if the sum is not the sum."""
    aggregation = cohort.server
    aggregation.advance(NOW)
    cohort.run(until="unmask")
    for site in aggregation.waiting:
        aggregation.take(site, *cohort.call(site, "unmask", aggregation.message(site)), now=NOW)
    last(lambda: aggregation.advance(NOW))
    if not np.array_equal(aggregation.total, cohort.expected(aggregation.masked_by)):
        raise SystemExit("the opened sum is not the sum of the survivors' vectors")
    last(aggregation.result)


def times(federation: Federation, repeat: int) -> tuple[dict[str, float], int]:
    """Best seconds of everything, and the bytes of a payload."""
    watch, survivors, lost = Stopwatch(), len(federation.sites) - len(federation.gone), len(federation.gone)
    streams = {"client": len(federation.sites) + 1, "masks": len(federation.sites), "unmask": survivors * (1 + lost)}
    size = 4 * federation.dim
    zeros, vector, payload = bytes(size), bytearray(size), 0

    def keystreams(*of: str) -> None:
        for name in of:
            watch.time(f"{name}_keystream", lambda name=name: in_cache(streams[name], size))
            watch.time(f"{name}_vectors", lambda name=name: as_vectors(streams[name], zeros, vector))

    def vector_of(cohort: Cohort, site: str) -> int:
        """One site masks, the server takes it; bytes of the payload."""
        message, spent = cohort.server.message(site), list[float]()
        with timed(spent, (client.fixedpoint, "encode"), (client.masking, "add_streams")):
            envelope, payload = watch.time("client_total", lambda: cohort.call(site, "masked", message))
        watch.note("client", sum(spent))
        watch.note("encode", spent[0])
        watch.time("server_take", lambda: cohort.server.take(site, envelope, payload, now=NOW))
        return len(payload)

    for _ in range(repeat):
        cohort = federation.cohort()
        for site in cohort.server.waiting:
            payload = vector_of(cohort, site)
            keystreams("client", "masks")
        spent: list[float] = []
        last: list[float] = []  # opened, then made a mean

        def timed_last(run: Callable[[], Any], last: list[float] = last) -> None:
            began = time.process_time()
            run()
            last.append(time.process_time() - began)

        with timed(spent, (server.opening, "unmask")):
            finish(cohort, timed_last)
        watch.note("unmask", sum(spent))
        watch.note("unmask_total", sum(last))
        keystreams("unmask")
    return watch.best, payload


def server_bytes(federation: Federation) -> int:
    """What the aggregation adds to the memory at its peak, from the first vector to the mean, without the payloads."""
    cohort = federation.cohort()
    held = peak = 0

    def watched(run: Callable[[], Any]) -> None:
        nonlocal held, peak
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run()
        after, most = tracemalloc.get_traced_memory()
        peak, held = max(peak, held + most - before), held + after - before

    tracemalloc.start()
    for site in cohort.server.waiting:
        answer = cohort.call(site, "masked", cohort.server.message(site))
        watched(lambda site=site, answer=answer: cohort.server.take(site, *answer, now=NOW))
    finish(cohort, watched)
    tracemalloc.stop()
    return peak


def figures(found: dict[str, float], payload: int, extra: int, dim: int) -> dict[str, float]:
    """The figures of the docstring."""
    return {
        "client_ratio": found["client"] / found["client_keystream"],
        "unmask_ratio": found["unmask"] / found["unmask_keystream"],
        "bytes_per_param": payload / dim,
        "server_extra_mb": extra / 1e6,
        "client_ratio_masks_only": found["client"] / found["masks_keystream"],
        "client_ratio_vectors": found["client"] / found["client_vectors"],
        "unmask_ratio_vectors": found["unmask"] / found["unmask_vectors"],
        "total_client_ratio": found["client_total"] / found["client_keystream"],
        "total_unmask_ratio": found["unmask_total"] / found["unmask_keystream"],
        **{f"{name}_ms": seconds * 1e3 for name, seconds in sorted(found.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--drop", type=int, default=1)
    parser.add_argument("--dim", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    federation = Federation(args.clients, args.drop, args.dim)
    found, payload = times(federation, args.repeat)
    shown = figures(found, payload, server_bytes(federation), args.dim)
    for name, value in shown.items():
        print(f"{name:<26}{value:12.3f}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in shown.items()}))


if __name__ == "__main__":
    main()
