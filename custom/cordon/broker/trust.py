"""By what evidence is judged: the tenant's policy, and the vendors' collateral as it lies on the disk now."""

from __future__ import annotations

from pathlib import Path

from cordon import documents
from cordon.attest import collateral
from cordon.attest.collateral import Collateral
from cordon.attest.policy import AttestationPolicy
from cordon.attest.vendor import Trust
from cordon.errors import ConfigError


class TrustFiles:
    """Gives the ``Trust`` of the moment: a fresh CRL counts from the next decision on. The policy is that of the start.

    Args:
        path: of the policy; the software TEE's root lies beside it.
        folder: of the collateral.

    Raises:
        ConfigError: (also when asked later) a file cannot be read as what it should be; nothing is judged then.
    """

    def __init__(self, policy: AttestationPolicy, path: Path, folder: Path | None) -> None:
        self._policy = policy
        self._folder = folder
        self._root = None
        if policy.software != "none":
            from cordon.attest import software  # where a POC policy asks for it: the production image has no such file

            self._root = software.load_certificate(documents.read_bytes(path.parent / policy.software.root))
        self._held: tuple[object, Trust] | None = None
        self()

    def __call__(self) -> Trust:
        """The trust as of now."""
        seen = self._seen()
        held = self._held
        if held is None or held[0] != seen:
            read = Collateral() if self._folder is None else collateral.read(self._folder)
            held = self._held = (seen, Trust(self._policy, read, self._root))
        return held[1]

    def _seen(self) -> object:
        """What changes when a file of the folder does."""
        if self._folder is None:
            return None
        try:
            found = [(path.name, path.stat()) for path in sorted(self._folder.iterdir())]
        except OSError as error:
            raise ConfigError(f"{self._folder}: {error.strerror}") from error
        return [(name, each.st_mtime_ns, each.st_size, each.st_ino) for name, each in found]
