"""The 64 bytes and the bundle digest."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cordon
from cordon.attest.binding import Context, bundle_digest, gpu_nonce, report_data
from cordon.signing import lp

CONTEXT = Context(
    purpose="job", site="hospital-a", study="s", job="j", job_digest="d", bundle_digest="b", policy_digest="p"
)
BASE = {
    "ctx": CONTEXT,
    "nonce": b"n" * 32,
    "mtls_spki_sha256": "ab" * 32,
    "kem_public_key": b"kem",
    "signing_public_key": b"sig",
    "gpu_evidence": None,
}


def test_formula_is_the_one_of_the_design():
    want = hashlib.sha512(
        lp(b"cordon/evidence/v1")
        + lp(
            b'{"bundle_digest":"b","job":"j","job_digest":"d","policy_digest":"p","purpose":"job",'
            b'"site":"hospital-a","study":"s"}'
        )
        + lp(b"n" * 32)
        + lp(bytes.fromhex("ab" * 32))
        + lp(b"kem")
        + lp(b"sig")
        + lp(b"none")
    ).digest()
    assert report_data(**BASE) == want
    assert len(want) == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonce", b"m" * 32),
        ("mtls_spki_sha256", "ac" * 32),
        ("kem_public_key", b"kem2"),
        ("signing_public_key", b"sig2"),
        ("gpu_evidence", []),
        ("gpu_evidence", [{"uuid": "GPU-1", "report": "x"}]),
        *(
            ("ctx", Context(**{**{f: getattr(CONTEXT, f) for f in CONTEXT.__struct_fields__}, name: "parent"}))
            for name in CONTEXT.__struct_fields__
        ),
    ],
)
def test_every_field_is_bound(field, value):
    assert report_data(**{**BASE, field: value}) != report_data(**BASE)


@given(st.binary(max_size=8), st.binary(max_size=8), st.integers(1, 7))
def test_no_two_splits_of_the_same_bytes_are_alike(first, second, cut):
    joined = first + second
    if (joined[:cut], joined[cut:]) != (first, second):
        moved = {"kem_public_key": joined[:cut], "signing_public_key": joined[cut:]}
        same = {"kem_public_key": first, "signing_public_key": second}
        assert report_data(**{**BASE, **moved}) != report_data(**{**BASE, **same})


def test_gpu_evidence_is_ordered_by_uuid():
    gpus = [{"uuid": "GPU-2"}, {"uuid": "GPU-1"}]
    assert report_data(**{**BASE, "gpu_evidence": gpus}) == report_data(**{**BASE, "gpu_evidence": gpus[::-1]})


def test_gpu_nonce_names_challenge_and_kem_key():
    assert gpu_nonce(b"n", b"k") == hashlib.sha256(lp(b"cordon/gpu/v1") + lp(b"n") + lp(b"k")).digest()


def _package(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_bundle_digest_sees_content_names_and_data_files(tmp_path):
    files = {"a.py": b"1", "sub/b.py": b"2", "sub/data.yml": b"3"}
    first = bundle_digest(_package(tmp_path / "one", files))
    assert first == bundle_digest(_package(tmp_path / "two", dict(reversed(files.items()))))
    for changed in ({"a.py": b"x"}, {"c.py": b""}, {"sub/data.yml": b"33"}):
        assert bundle_digest(_package(tmp_path / f"c{sorted(changed)}", {**files, **changed})) != first
    moved = {"a.py": b"1", "b.py": b"2", "sub/data.yml": b"3"}
    assert bundle_digest(_package(tmp_path / "moved", moved)) != first


def test_bundle_digest_ignores_compiled_caches(tmp_path):
    files = {"a.py": b"1"}
    first = bundle_digest(_package(tmp_path / "one", files))
    cached = {**files, "__pycache__/a.cpython-311.pyc": b"x", "old.pyc": b"y"}
    assert bundle_digest(_package(tmp_path / "two", cached)) == first


def test_own_bundle_digest_is_stable():
    assert bundle_digest() == bundle_digest(Path(cordon.__file__).parent)
    assert len(bytes.fromhex(bundle_digest())) == 32
