"""The folder of a verifier's collateral: what is in it is read whole, or the file is named."""

import pytest

from cordon.attest import collateral
from cordon.errors import ConfigError
from fakes import amd_pki

CRL = amd_pki.crl("Genoa")


def test_no_folder_is_no_collateral(tmp_path):
    assert collateral.read(tmp_path / "none") == collateral.Collateral()


def test_a_list_is_found_by_product(tmp_path):
    (tmp_path / "amd-Genoa.crl").write_bytes(CRL)
    (tmp_path / "README.md").write_text("where these come from")
    (tmp_path / ".hidden").write_text("an editor's")
    assert collateral.read(tmp_path) == collateral.Collateral(crls={"genoa": CRL})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("amd-genoa.crl", b""),
        ("amd-genoa.crl", b"no list"),
        ("intel-b0c06f000000.json", b"{}"),
        ("intel-b0c06f000000.json", b"["),
        ("driver.xml", b"<a/>"),
        ("driver.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        ("vbios.swidtag", b"\xff"),
        ("genoa.crl", CRL),
        ("amd-genoa.pem", CRL),
        ("intel.txt", b"x"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        collateral.read(tmp_path)


def test_bounds(tmp_path, monkeypatch):
    with open(tmp_path / "amd-genoa.crl", "wb") as file:
        file.truncate(collateral.MAX_FILE + 1)
    with pytest.raises(ConfigError, match="larger than"):
        collateral.read(tmp_path)
    (tmp_path / "amd-genoa.crl").unlink()
    monkeypatch.setattr(collateral, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / f"amd-{number}.crl").write_bytes(CRL)
    with pytest.raises(ConfigError, match="3 files, at most 2"):
        collateral.read(tmp_path)
