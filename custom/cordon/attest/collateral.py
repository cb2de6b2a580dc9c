"""What a verifier holds beside its policy: vendors' signed statements about keys, platforms and firmware.

Files in one folder (``local/collateral`` of a kit), fetched by whoever looks after the site and read anew at each round
of challenges, so that a fresh CRL counts without a restart. Each is signed by its vendor, so a wrong one can only make
evidence fail or stay unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cordon import documents
from cordon.errors import ConfigError

MAX_FILE = 4 * 1024 * 1024  # bytes; AMD's CRLs and RIM files are a few KiB, Intel's collateral under 64
MAX_FILES = 64
OTHERS = ("README.md", "signature.json")  # beside collateral; provisioning signs every folder of a kit


@dataclass(frozen=True)
class Collateral:
    """``crls`` AMD product -> its ARK's CRL; ``dcap`` Intel FMSPC (hex) -> collateral JSON; ``rims`` NVIDIA RIM XML."""

    crls: dict[str, bytes] = field(default_factory=dict)
    dcap: dict[str, bytes] = field(default_factory=dict)
    rims: tuple[bytes, ...] = ()


def read(folder: Path) -> Collateral:
    """The collateral in ``folder``: ``amd-<product>.crl``, ``intel-<fmspc>.json``, ``*.xml`` and ``*.swidtag``.

    Each is parsed here, so that a broken file is this side's error, with its name, and not a peer's failure.

    Raises:
        ConfigError: a file that is none of these, that cannot be read as such, too many, or too large.
    """
    if not folder.is_dir():
        return Collateral()
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OTHERS)
    if len(paths) > MAX_FILES:
        raise ConfigError(f"{folder}: {len(paths)} files, at most {MAX_FILES}")
    crls, dcap, rims = {}, {}, []
    for path in paths:
        data = documents.read_bytes(path, MAX_FILE)
        vendor, _, name = path.stem.lower().partition("-")
        try:
            if path.suffix == ".crl" and vendor == "amd":
                from cordon.attest.snp import revocation

                revocation.load(data)
                crls[name] = data
            elif path.suffix == ".json" and vendor == "intel":
                from cordon.attest.dcap import collateral as intel

                intel.parse(data)
                dcap[name] = data
            elif path.suffix in (".xml", ".swidtag"):
                from cordon.attest.nvgpu import rim

                rim.named(data)
                rims.append(data)
                if len(rims) > rim.MAX_RIMS:
                    raise ConfigError(f"one RIM too many: at most {rim.MAX_RIMS} are read")
            else:
                wanted = "amd-<product>.crl, intel-<fmspc>.json, or a RIM (*.xml, *.swidtag)"
                raise ConfigError(f"not collateral: want {wanted}")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return Collateral(crls, dcap, tuple(rims))
