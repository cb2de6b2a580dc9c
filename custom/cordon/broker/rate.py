"""How often each member may ask: one token bucket per key, for a set of keys that is fixed at the start.

A stranger has no bucket, so that nobody can fill the table.
"""

from __future__ import annotations

from collections.abc import Iterable


class TokenBuckets:
    """``burst`` requests at once, ``per_s`` in the long run, for each of ``keys``.

    >>> buckets = TokenBuckets(["a"], per_s=2.0, burst=1)
    >>> buckets.take("a", 100.0), buckets.take("a", 100.0), buckets.take("a", 100.5)
    (0.0, 0.5, 0.0)
    """

    def __init__(self, keys: Iterable[str], per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._left: dict[str, tuple[float, float | None]] = {key: (self._burst, None) for key in keys}

    def take(self, key: str, now: float) -> float:
        """0.0 if ``key`` may go on; else nothing is taken, and it is the number of seconds until it may.

        Args:
            key: one of ``keys``; KeyError for another.
            now: seconds of a monotonic clock. A clock that goes back refills nothing.
        """
        left, since = self._left[key]
        since = now if since is None else since
        left = min(self._burst, left + max(0.0, now - since) * self._per_s)
        wait_s = max(0.0, (1.0 - left) / self._per_s)
        # Rounding may leave a hair less than a whole token after exactly the wait that was named.
        if wait_s < 1e-9:
            left, wait_s = max(0.0, left - 1.0), 0.0
        self._left[key] = (left, max(now, since))
        return wait_s
