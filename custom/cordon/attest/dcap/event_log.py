"""CCEL: the firmware's log of what it measured into the RTMRs, in the crypto-agile format of the TCG.

Sources: TCG PC Client Platform Firmware Profile 1.05, section 10 (TCG_PCClientPCREvent, TCG_PCR_EVENT2,
TCG_EfiSpecIDEvent); Intel Guest-Host Communication Interface for TDX, section 4.3 (CCEL), UEFI 2.10, section 38.4
(measurement register index: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3). Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from cordon.errors import ConfigError

MAX_EVENT_LOG = 1024 * 1024  # bytes
MAX_EVENTS = 16 * 1024

EV_NO_ACTION = 3  # says something, extends nothing
SHA384 = 0x000C  # TPM_ALG_SHA384
SIGNATURE = b"Spec ID Event03\0"
REGISTERS = range(1, 5)


@dataclass(frozen=True)
class Event:
    """One entry: which register (UEFI's index) was extended with which SHA-384 digest (None: no such digest)."""

    register: int
    type: int
    digest: bytes | None
    data: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, size: int) -> bytes:
        part = self.data[self.offset : self.offset + size]
        if len(part) != size:
            raise _malformed(f"ends inside an entry, at byte {len(self.data)}")
        self.offset += size
        return part

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def at_end(self) -> bool:
        """Firmware leaves the rest of the log's memory as it was: all zeros or all ones."""
        if self.data[self.offset : self.offset + 1] not in (b"", b"\0", b"\xff"):
            return False  # most entries start with the number of an RTMR
        rest = self.data[self.offset :]
        return not rest.strip(b"\0") or not rest.strip(b"\xff")


def parse(log: bytes) -> list[Event]:
    """The entries of a CCEL log, without its header.

    Raises:
        ConfigError: ``event_log_format``: not bytes, too long, not this format, truncated, an unknown register.
    """
    if not isinstance(log, bytes):
        raise _malformed(f"an event log is bytes, not {type(log).__name__}")
    if len(log) > MAX_EVENT_LOG:
        raise _malformed(f"has {len(log)} bytes, want at most {MAX_EVENT_LOG}")
    reader = _Reader(log)
    sizes = _header(reader)
    events: list[Event] = []
    while not reader.at_end():
        if len(events) == MAX_EVENTS:
            raise _malformed(f"has more than {MAX_EVENTS} entries")
        register, kind, count = reader.numbers("<III")
        if count > len(sizes):
            raise _malformed(f"entry {len(events)} has {count} digests, the header names {len(sizes)} algorithms")
        digests: dict[int, bytes] = {}
        for _ in range(count):
            (algorithm,) = reader.numbers("<H")
            if algorithm not in sizes or algorithm in digests:
                raise _malformed(f"entry {len(events)} has a digest of algorithm {algorithm:#06x}, unnamed or double")
            digests[algorithm] = reader.take(sizes[algorithm])
        data = reader.take(*reader.numbers("<I"))
        if kind != EV_NO_ACTION and register not in REGISTERS:
            raise _malformed(f"entry {len(events)} extends register {register}, want 1 to 4")
        events.append(Event(register, kind, digests.get(SHA384), data))
    return events


def replay(events: list[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """RTMR0 to RTMR3 after these events: each extend is SHA-384(register || digest), from 48 zero bytes.

    Raises:
        ConfigError: ``event_log_format``: an event that extends has no SHA-384 digest.
    """
    values = {register: bytes(48) for register in REGISTERS}
    for number, event in enumerate(events):
        if event.type == EV_NO_ACTION:
            continue
        if event.digest is None:
            raise _malformed(f"entry {number} has no SHA-384 digest")
        values[event.register] = hashlib.sha384(values[event.register] + event.digest).digest()
    return values[1], values[2], values[3], values[4]


def _header(reader: _Reader) -> dict[int, int]:
    """Digest sizes by algorithm, from the first entry, which has the older form with a SHA-1 digest."""
    _, kind = reader.numbers("<II")
    reader.take(20)
    inside = _Reader(reader.take(*reader.numbers("<I")))
    if kind != EV_NO_ACTION or inside.take(16) != SIGNATURE:
        raise _malformed("does not start with Spec ID Event03")
    inside.take(8)  # platform class, versions, size of a UINTN
    (count,) = inside.numbers("<I")
    if not 1 <= count <= 16:
        raise _malformed(f"names {count} algorithms")
    sizes: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = inside.numbers("<HH")
        sizes[algorithm] = size
    if sizes.get(SHA384) != 48:
        raise _malformed("has no SHA-384 digests")
    inside.take(*inside.numbers("<B"))
    if inside.offset != len(inside.data):
        raise _malformed("has a header of the wrong length")
    return sizes


def _malformed(text: str) -> ConfigError:
    return ConfigError(f"event_log_format: log {text}")
