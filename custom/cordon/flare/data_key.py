"""A hospital's data key in the memory of one job's process, for as long as the hospital's broker lets it.

A lease lasts as long as the broker granted it, measured here from *before* the request went out, on a clock that counts
a suspended machine's sleep and that nobody can set; so the time of day of neither host matters. One thread asks every
``check_s`` whether the lease stands, and renews it by fresh evidence in its last third. A broker that is silent costs
nothing until the lease runs out; one that says no ends it at once. After the end there is no way back for this object.

The key is a bytearray that is zeroed at the end. That is not all there ever was of it: Python's bytes cannot be
wiped, and ``cryptography`` returns and takes such, so copies may stay in the process's memory until that is used anew.
What keeps them from the host is the confidential VM.

The clock is the kernel's. A hypervisor that slows a guest's time (no secure TSC), and keeps the broker's answers away
too, makes a lease longer: this side cannot notice.
"""

from __future__ import annotations

import hmac
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from cordon.attest.keys import ProcessKeys
from cordon.broker.gate import Lease
from cordon.data.source import VaultSource
from cordon.data.vault import Vault, stamp_of
from cordon.errors import AttestError, BrokerUnavailable, ConfigError, CordonError, Refused, SealError
from cordon.flare import key_records, key_request
from cordon.flare.key_request import Asking, Broker, Granted
from cordon.flare.kit import Kit
from cordon.job import Job

PASSING = frozenset({"rate_limited", "nonce_unknown", "nonce_expired", "clock_moved_back"})
"""Refusals that say nothing about who asks: a holder asks again until its lease runs out."""

LEAST_PAUSE_S = 0.05
JOIN_S = 2.0  # a request that is under way then ends by itself, and its answer is dropped


def boot_time() -> float:
    """Seconds that only go forward and, where the system has such a clock, through a machine's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class DataKey:
    """A held lease. Made by ``acquire``; a context manager, or ``close`` it.

    All that goes wrong is a Refused (revoked, refused, expired), a BrokerUnavailable (the lease ran out while the
    broker did not answer), a VaultError or SealError (what came is not the vault's key), an AttestError (this
    machine's device makes no evidence now), or a ConfigError (the kit).
    """

    def __init__(self, asking: Asking, granted: Granted, key: bytes) -> None:
        self._asking = asking
        self._granted = granted
        self._key = bytearray(key)
        self._over: CordonError | None = None  # why the lease stands no more
        self._failure: CordonError | None = None  # of the last attempt to renew
        self._renew_at = granted.until - granted.lasts / 3
        self._lock = threading.Lock()  # guards the five above
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cordon-data-key", daemon=True)

    @classmethod
    def acquire(
        cls,
        kit: Kit,
        job: Job,
        job_id: str,
        keys: ProcessKeys,
        *,
        connect: Callable[[Kit], Broker] = key_request.connect,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = boot_time,
    ) -> DataKey:
        """The key of this hospital's vault, for this job's process.

        Args:
            keys: those of the process's evidence to the coordinator: one process, one set of keys.
            connect: makes the client.
            now: time of day, for the records only.
            clock: seconds, only ever forward; the lease is measured on it.

        Raises:
            Refused, BrokerUnavailable, SealError, AttestError, ConfigError: as ``key_request.Asking.ask``; written down
                in the kit.
            VaultError: the vault's file is missing or none.
            ConfigError: the site's policy names no vault.
        """
        if kit.policy is None or kit.policy.data.vault is None:
            raise ConfigError(f"{kit.root}: the site's policy names no vault")
        path = kit.policy.resolve(kit.local, kit.policy.data.vault)
        leave_no_core()
        asking = Asking(kit, job, job_id, keys, path, stamp_of(path), connect(kit), now, clock)
        try:
            granted, key = asking.ask()
            _write(asking, granted.lease, "released", receipt=granted.receipt)
        except CordonError as error:
            asking.broker.close()
            _write_failure(asking, "", error)
            raise
        made = cls(asking, granted, key)
        made._thread.start()
        return made

    @property
    def lease(self) -> Lease:
        """The newest one; it says nothing about whether it still stands."""
        return self._granted.lease

    @property
    def ledger(self) -> dict[str, Any]:
        """The envelope over the hospital's ledger head that came with the newest lease."""
        return self._granted.ledger

    def require(self) -> None:
        """Raise unless the lease stands, now.

        Raises:
            Refused: ``lease_revoked``, ``lease_expired``, or why a renewal was refused.
            BrokerUnavailable: it ran out while the broker did not answer.
        """
        if self._over is None and self._asking.clock() >= self._granted.until:
            self._end(self._ran_out())
        if self._over is not None:
            raise _anew(self._over)

    @contextmanager
    def source(self) -> Iterator[VaultSource]:
        """The vault's members, readable until the block ends; what was read counts only if the block ends well.

        Raises:
            Refused, BrokerUnavailable: as ``require``, before or after.
            VaultError: the file is not the one that the lease is for, or the key not its key.
        """
        with self._lock:
            key = bytes(self._key)
        self.require()  # after the copy: an end that came before it has zeroed the key
        with Vault(self._asking.path, key, expect=self._asking.stamp) as vault:
            del key
            yield VaultSource(vault)
        self.require()

    def close(self) -> None:
        """Drop the key and stop asking. The broker is not told: what it released counts as released."""
        with self._lock:
            over, self._over = self._over, self._over or Refused("lease_expired", "the holder has closed it")
            self._wipe()
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)
        if over is None:
            _write(self._asking, self.lease, "ended", code="closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DataKey(lease={self.lease.lease!r}, {'stands' if self._over is None else 'over'})"

    # -- the thread --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self._pause()):
                self._check()
        finally:  # whatever ended this thread: a lease that nobody watches is none
            self._end(BrokerUnavailable("nobody watches the lease any more"))
            self._asking.broker.close()

    def _pause(self) -> float:
        left = min(self._granted.until, self._renew_at) - self._asking.clock()
        return max(LEAST_PAUSE_S, min(self._granted.lease.check_s, left))

    def _check(self) -> None:
        lease = self.lease
        try:
            self.require()
            state = self._asking.broker.lease_state(lease.lease).state
            if state == "expired":  # by the broker's clock; ours may have been slowed
                raise Refused("lease_expired", f"the broker's lease {lease.lease} has expired")
            if state != "live":
                raise Refused("lease_revoked", f"the broker says that lease {lease.lease} is {state}")
            if self._asking.clock() >= self._renew_at:
                self._renew()
        except Refused as error:
            self._failure = error.with_traceback(None)
            if error.code not in PASSING:
                self._end(error)
        except CordonError as error:  # silent, not itself, or no evidence at the moment: until the lease runs out
            self._failure = error.with_traceback(None)

    def _renew(self) -> None:
        held = self._granted
        try:
            granted, key = self._asking.ask(renews=held.lease.lease)
            if granted.lease.granted < held.lease.granted:
                raise BrokerUnavailable("the broker answered with an older lease than the one that is held")
            with self._lock:
                if self._over is None and not hmac.compare_digest(key, self._key):
                    raise BrokerUnavailable("the broker answered with another key for the same vault")
            _write(self._asking, granted.lease, "renewed", receipt=granted.receipt)
        except CordonError as error:
            self._failure = error
            self._renew_at = self._asking.clock() + max(held.lease.check_s, held.lasts / 30)
            _write_failure(self._asking, held.lease.lease, error)
            raise
        with self._lock:
            if self._over is None:
                self._granted, self._failure = granted, None
                self._renew_at = granted.until - granted.lasts / 3

    def _end(self, why: CordonError) -> None:
        with self._lock:
            if self._over is not None:
                return
            self._over = why
            self._wipe()
        self._stop.set()
        _write(self._asking, self.lease, "ended", code=_code(why))

    def _ran_out(self) -> CordonError:
        what = f"lease {self.lease.lease} ran out"
        if isinstance(self._failure, BrokerUnavailable):
            return BrokerUnavailable(f"{what}: {self._failure}")
        return Refused("lease_expired", what if self._failure is None else f"{what}: {self._failure}")

    def _wipe(self) -> None:
        self._key[:] = bytes(len(self._key))


def leave_no_core() -> None:
    """A host that can make this process crash would find keys, patients and updates in its core file."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1 stops files, as 0 does, and pipes to a program (core_pattern), which 0 does not (Linux, fs/coredump.c).
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _anew(over: CordonError) -> CordonError:
    """``over`` to be raised: an error that was raised and is kept would keep the frames it passed, patients and all."""
    return Refused(over.code, over.detail, over.receipt) if isinstance(over, Refused) else type(over)(*over.args)


def _code(error: CordonError) -> str:
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, BrokerUnavailable):
        return "broker_unavailable"
    if isinstance(error, AttestError):
        return key_request.NO_EVIDENCE
    return "not_opened" if isinstance(error, SealError) else "site_error"


def _write(
    asking: Asking, lease: Lease, decision: str, *, code: str = "", receipt: dict[str, Any] | None = None
) -> None:
    key_records.append(
        asking.kit.root,
        asking.now(),
        job=asking.job_id,
        lease=lease.lease,
        decision=decision,
        code=code,
        expires=lease.expires,
        receipt=receipt,
    )


def _write_failure(asking: Asking, lease: str, error: CordonError) -> None:
    key_records.append(
        asking.kit.root,
        asking.now(),
        job=asking.job_id,
        lease=lease,
        decision="refused" if isinstance(error, Refused) else "unavailable",
        code=_code(error),
        expires=None,
        receipt=error.receipt if isinstance(error, Refused) else None,
    )
