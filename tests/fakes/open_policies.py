"""Attestation policies that look at nothing, to be tightened field by field in a test."""

import typing
from typing import Any

import msgspec
import yaml

from cordon.attest.policy import SCHEMA

SECTIONS = ("software", "snp", "tdx", "sgx", "azure", "gpu")


def anything(schema: type[msgspec.Struct]) -> dict[str, Any]:
    """Every field of ``schema`` says any; literal versions say themselves."""
    body: dict[str, Any] = {}
    for field in msgspec.structs.fields(schema):
        options = typing.get_args(field.type) or (field.type,)
        structs = [each for each in options if isinstance(each, type) and issubclass(each, msgspec.Struct)]
        if field.name == "version":
            body[field.name] = options[0]
        elif "any" in str(field.type):
            body[field.name] = "any"
        else:
            body[field.name] = anything(structs[0])
    return body


def policy(*evidence: str, **sections: Any) -> dict[str, Any]:
    """An AttestationPolicy (profile poc) for ``evidence`` with these sections."""
    body: dict[str, Any] = {
        "version": SCHEMA,
        "name": "test",
        "profile": "poc",
        "evidence": list(evidence),
        "bundle_digest": "any",
        "max_age_s": 60,
        "lease_s": 900,
    }
    return {**body, **dict.fromkeys(SECTIONS, "none"), **sections}


def as_yaml(body: dict[str, Any]) -> str:
    return str(yaml.safe_dump(body, sort_keys=False))
