"""Attestation policies for tests: the shipped ones, with some fields changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cordon.attest.policy import AttestationPolicy

SHIPPED = Path(__file__).parents[2] / "cc_config" / "policy"


def policy(name: str = "software", /, **changes: Any) -> AttestationPolicy:
    """``cc_config/policy/<name>.yml`` with ``changes``; a mapping changes fields inside a section."""
    tree = yaml.safe_load((SHIPPED / f"{name}.yml").read_text())
    return msgspec.convert(_merged(tree, changes), AttestationPolicy, strict=True)


def _merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(tree)
    for field, value in changes.items():
        inner = made.get(field)
        made[field] = _merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, dict) else value
    return made
