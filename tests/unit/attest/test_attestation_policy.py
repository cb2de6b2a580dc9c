"""The attestation policy: nothing may be left out, and software must be named."""

from pathlib import Path

import msgspec
import pytest
import yaml

from cordon import documents
from cordon.attest.policy import AttestationPolicy
from cordon.errors import ConfigError
from fakes.policies import policy as make

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
        {"software": "none"},
        {"evidence": ["snp"]},
        {"evidence": ["software", "snp"]},
        {"profile": "production"},
        {"software": {"root": "root.pem"}},
        {"software": {"root": "root.pem", "measurement": "all"}},
        {"software": {"root": "root.pem", "measurement": ["AB" * 32]}},
        {"evidence": []},
        {"evidence": ["softwar"]},
        {"bundle_digest": ["12"]},
        {"gpu": True},
        {"gpu": "some"},
        {"snp": "any"},
        {"max_age_s": 0},
        {"lease_s": 1e9},
        {"extra": 1},
        {"version": "cordon/attestation/v1"},
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
    names = ["azure-snp", "azure-tdx", "broker-sgx", "snp", "snp-h100", "software", "tdx", "tdx-h100"]
    assert sorted(path.stem for path in SHIPPED) == names
    for path in SHIPPED:
        policy = documents.load(path, AttestationPolicy)
        assert policy.name in (path.stem, "poc-software")
        assert (policy.profile == "poc") == (path.stem == "software")


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "software"], ids=lambda path: path.stem)
def test_a_shipped_production_policy_lets_no_image_pass_by_accident(path):
    policy = documents.load(path, AttestationPolicy)
    pins = [
        getattr(section, field)
        for section, field in ((policy.snp, "measurement"), (policy.tdx, "mr_td"), (policy.sgx, "mr_enclave"))
        if section != "none"
    ]
    assert pins
    assert all(set("".join(pin)) == {"0"} for pin in pins)


def _leaves(tree, at=()):
    for field, value in tree.items():
        if isinstance(value, dict) and field != "pcrs":  # which of them is the policy's choice
            yield from _leaves(value, (*at, field))
        yield (*at, field)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_field_of_any_section_may_be_left_out(path):
    tree = yaml.safe_load(path.read_text())
    fields = list(_leaves(tree))
    assert len(fields) > 12
    for at in fields:
        less = yaml.safe_load(path.read_text())
        inner = less
        for name in at[:-1]:
            inner = inner[name]
        del inner[at[-1]]
        with pytest.raises(ConfigError, match=at[-1]):
            _parse(less)


@pytest.mark.parametrize("name", ["snp", "tdx", "broker-sgx"])
def test_debug_can_be_let_through_in_poc_only(name):
    section = {"snp": {"policy": {"debug": "any"}}, "tdx": {"debug": "any"}, "broker-sgx": {"debug": "any"}}[name]
    change = {name.removeprefix("broker-"): section}
    assert make(name, profile="poc", **change)
    with pytest.raises(msgspec.ValidationError, match="debug: any is refused outside profile poc"):
        make(name, **change)


@pytest.mark.parametrize("name", ["snp", "tdx", "azure-snp"])
def test_sections_are_those_of_the_accepted_types(name):
    with pytest.raises(msgspec.ValidationError, match="wants a section 'software'"):
        make(name, evidence=[*make(name).evidence, "software"], profile="poc")
    with pytest.raises(msgspec.ValidationError, match="no use for the section"):
        make(name, evidence=["sgx"], sgx=msgspec.to_builtins(make("broker-sgx").sgx))
