"""Arguments of rules, checked once. Job configs hold them as floats."""

from __future__ import annotations

import math

from cordon.errors import ConfigError


def liars(rule: str, n: int, f: float) -> int:
    """f as a whole number below n/2."""
    count = whole(f"{rule}: f", f, 0)
    if 2 * count >= n:
        raise ConfigError(f"{rule}: wants 2f < n, got 2 x {count} >= {n} rows")
    return count


def trim(n: int, f: float | None, fraction: float | None) -> int:
    """Rows that a trimmed mean drops at each end."""
    if (f is None) == (fraction is None):
        raise ConfigError("trimmed_mean wants exactly one of f and fraction")
    if f is None:
        if fraction is None or not 0 <= fraction < 0.5:
            raise ConfigError(f"trimmed_mean: fraction must lie in [0, 0.5), got {fraction}")
        return math.floor(fraction * n)
    return liars("trimmed_mean", n, f)


def selected(n: int, f: int, m: float | None) -> int:
    """Rows that Multi-Krum averages."""
    count = n - f if m is None else whole("multi_krum: m", m, 1)
    if count > n - f:
        raise ConfigError(f"multi_krum: wants m <= n - f, got {count} > {n} - {f}")
    return count


def whole(what: str, value: float, least: int) -> int:
    """A whole number >= ``least``."""
    if not isinstance(value, int | float) or not least <= value < 2**53 or value != math.floor(value):
        raise ConfigError(f"{what} must be a whole number >= {least}, got {value}")
    return int(value)


def count(what: str, value: float) -> int:
    """A number of iterations: 1..10,000."""
    number = whole(what, value, 1)
    if number > 10_000:
        raise ConfigError(f"{what} must be at most 10000, got {number}")
    return number


def positive(what: str, value: float) -> float:
    """A finite number > 0."""
    return between(what, value, math.ulp(0.0), 1e300)


def between(what: str, value: float, low: float, high: float) -> float:
    """A number in [low, high]."""
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{what} must lie in [{low:g}, {high:g}], got {value}")
    return float(value)
