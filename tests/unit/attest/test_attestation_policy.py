"""The attestation policy: nothing may be left out, and software must be named."""

from pathlib import Path

import msgspec
import pytest
import yaml

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / "cc_config" / "policy").glob("*.yml"))


def _parse(tree):
    return documents.parse(yaml.safe_dump(tree).encode(), AttestationPolicy, "policy.yml")


@pytest.fixture
def tree(make_policy):
    return msgspec.to_builtins(make_policy())


@pytest.mark.parametrize("field", AttestationPolicy.__struct_fields__)
def test_every_field_must_be_there(tree, field):
    del tree[field]
    with pytest.raises(ConfigError, match=field):
        _parse(tree)


@pytest.mark.parametrize(
    "change",
    [
        {"allow_software": False},
        {"evidence": ["snp"]},  # allow_software without software
        {"profile": "production"},
        {"root": "any"},
        {"evidence": []},
        {"evidence": ["softwar"]},
        {"measurement": "all"},
        {"measurement": ["AB" * 32]},
        {"bundle_digest": ["12"]},
        {"gpu": True},
        {"max_age_s": 0},
        {"lease_s": 1e9},
        {"extra": 1},
        {"version": "cordon/attestation/v2"},
    ],
)
def test_what_does_not_fit_is_refused(tree, change):
    _parse(tree)
    with pytest.raises(ConfigError):
        _parse({**tree, **change})


def test_digest_is_of_the_meaning(tree):
    assert _parse(tree).digest == _parse(dict(reversed(tree.items()))).digest
    assert _parse(tree).digest != _parse({**tree, "lease_s": 91}).digest


def test_shipped_policies_fit():
    assert [path.stem for path in SHIPPED] == ["snp-h100", "software", "tdx-h100"]
    for path in SHIPPED:
        policy = documents.load(path, AttestationPolicy)
        assert (policy.profile == "poc") == (path.stem == "software")
