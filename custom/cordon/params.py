"""Named arrays <-> one float32 vector, and a digest of the layout.

A model travels as one vector ``w`` of shape (d,), float32, in the order of the sorted parameter names.
The *layout* (names, shapes) is public and fixed by the job; its digest is in every message, so that a vector made for
another architecture is refused before it is read as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import rfc8785
from numpy.typing import NDArray

from cordon.errors import ConfigError
from cordon.signing import digest

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's parameters, sorted by name.

    >>> layout = Layout.of({"b": np.zeros(2, np.float32), "a": np.ones((2, 3), np.float32)})
    >>> layout.size, layout.shapes
    (8, (('a', (2, 3)), ('b', (2,))))
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(arrays: Mapping[str, NDArray[np.float32]]) -> Layout:
        """The layout of ``arrays``."""
        return Layout(tuple((name, tuple(arrays[name].shape)) for name in sorted(arrays)))

    @property
    def size(self) -> int:
        """d, the number of parameters."""
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the canonical JSON of names and shapes."""
        return digest("cordon/layout/v1", rfc8785.dumps([[name, list(shape)] for name, shape in self.shapes]))

    def flatten(self, arrays: Mapping[str, NDArray[np.float32]]) -> Vector:
        """``arrays`` as one (d,) float32 vector; the names and shapes must be exactly those of the layout."""
        if Layout.of(arrays) != self:
            raise ConfigError(f"parameters do not fit the layout: want {self.shapes}, got {Layout.of(arrays).shapes}")
        parts = [np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name, _ in self.shapes]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def unflatten(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """The named arrays of a (d,) vector (copies)."""
        if vector.shape != (self.size,):
            raise ConfigError(f"vector does not fit the layout: want ({self.size},), got {vector.shape}")
        arrays, at = {}, 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            arrays[name] = vector[at : at + size].reshape(shape).astype(np.float32)
            at += size
        return arrays

    def without(self, local: Iterable[str]) -> Layout:
        """The shared layout: all parameters but those named ``local``, which stay at a site.

        >>> Layout((("body.weight", (2, 3)), ("head.bias", (2,)))).without(["head.bias"]).shapes
        (('body.weight', (2, 3)),)

        Raises:
            ConfigError: a name that is no parameter, or is there twice; nothing would be left to share.
        """
        chosen = self._chosen(local)
        if chosen and len(chosen) == len(self.shapes):
            raise ConfigError("every parameter is local: nothing is left to share")
        return Layout(tuple(each for each in self.shapes if each[0] not in chosen))

    def only(self, local: Iterable[str]) -> Layout:
        """The layout of the parameters named ``local``; ConfigError as ``without``."""
        chosen = self._chosen(local)
        return Layout(tuple(each for each in self.shapes if each[0] in chosen))

    def split(self, vector: Vector, local: Iterable[str]) -> tuple[Vector, Vector]:
        """A (d,) vector as (its shared part, its part named ``local``): vectors of ``without`` and ``only``, copies."""
        mask = self._mask(local)
        if vector.shape != (self.size,):
            raise ConfigError(f"vector does not fit the layout: want ({self.size},), got {vector.shape}")
        return vector[~mask], vector[mask]

    def join(self, shared: Vector, own: Vector, local: Iterable[str]) -> Vector:
        """The inverse of ``split``: the (d,) vector of both parts."""
        mask = self._mask(local)
        count = int(mask.sum())
        if shared.shape != (self.size - count,) or own.shape != (count,):
            raise ConfigError(
                f"parts do not fit: want {self.size - count} and {count}, got {shared.shape}, {own.shape}"
            )
        vector = np.empty(self.size, np.float32)
        vector[~mask], vector[mask] = shared, own
        return vector

    def _chosen(self, local: Iterable[str]) -> set[str]:
        names, known = list(local), {name for name, _ in self.shapes}
        unknown = sorted(set(names) - known)
        if unknown:
            raise ConfigError(f"no parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        if len(set(names)) != len(names):
            raise ConfigError(f"a local parameter is named twice: {', '.join(sorted(names))}")
        return set(names)

    def _mask(self, local: Iterable[str]) -> NDArray[np.bool_]:
        chosen = self._chosen(local)
        parts = [np.full(int(np.prod(shape)), name in chosen) for name, shape in self.shapes]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)
