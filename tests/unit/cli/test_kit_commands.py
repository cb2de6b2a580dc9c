"""cordon spki, cordon pin. (cordon check kit: tests/e2e/test_provisioning_distributed.py, with kits.)"""

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cordon import documents, signing, study
from cordon.cli import main


@pytest.fixture(scope="module")
def request_of():
    """(certificate request, its public key), as `nvflare cert request` makes it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-a")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()), key.public_key()


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_spki_of_a_request_and_of_a_key(request_of, tmp_path, capsys, encoding):
    request, public = request_of
    (tmp_path / "a.csr").write_bytes(request.public_bytes(encoding))
    assert main(["keygen", "--out", str(tmp_path / "k.key"), "--pub", str(tmp_path / "k.pub")]) == 0
    said = capsys.readouterr().out.split("spki: ")[1].strip()
    assert main(["spki", str(tmp_path / "a.csr"), str(tmp_path / "k.pub")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'a.csr'}: {signing.encode_spki(public)}"
    assert second.endswith(f": {said}")


def test_spki_refuses_what_is_not_a_public_key(request_of, tmp_path, capsys):
    request, _ = request_of
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-5] ^= 1
    (tmp_path / "broken.csr").write_bytes(der)
    main(["keygen", "--out", str(tmp_path / "k.key")])
    (tmp_path / "text").write_text("hello")
    for name, said in (
        ("broken.csr", "not signed by its own key"),
        ("k.key", "not a public key or certificate"),
        ("text", "not a public key or certificate"),
        ("none", "cannot be read"),
    ):
        assert main(["spki", str(tmp_path / name)]) == 3, name
        assert said in capsys.readouterr().err


@pytest.fixture
def signed(tmp_path, request_of):
    """study.yml of two hospitals, signed by both; their keys beside it."""
    spki = {}
    for name in ("a", "b", "other"):
        main(["keygen", "--out", str(tmp_path / f"{name}.key"), "--pub", str(tmp_path / f"{name}.pub")])
        spki[name] = signing.encode_spki(signing.load_public_key((tmp_path / f"{name}.pub").read_bytes()))
    hospitals = {"hospital-a": "a", "hospital-b": "b"}
    tree = {
        "version": "cordon/study/v1",
        "study": "trial",
        "profile": "production",
        "coordinator": {"name": "server", "mtls_spki": signing.encode_spki(request_of[1])},
        "roster": [
            {"name": name, "mtls_spki": spki[key], "policy_spki": spki[key], "steward_spki": spki[key]}
            for name, key in hospitals.items()
        ],
        "contracts": [],
        "models": [],
        "jobs": [],
        "time_grid_s": 60.0,
        "evaluation": {"kind": "none"},
    }
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(tree))
    for key in hospitals.values():
        assert main(["sign", "--key", str(tmp_path / f"{key}.key"), "--as", "study", str(path)]) == 0
    return path


def _pin(study_file, key="a.pub", site="hospital-a", out="pin.yml"):
    folder = study_file.parent
    arguments = ["--study", str(study_file), "--site", site, "--policy-key", str(folder / key)]
    return main(["pin", *arguments, "--out", str(folder / out)])


def test_pin_says_the_digest_that_check_says(signed, capsys):
    assert _pin(signed) == 0
    assert main(["check", "study", str(signed)]) == 0
    made = yaml.safe_load((signed.parent / "pin.yml").read_text())
    assert made == {
        "version": "cordon/pin/v1",
        "site": "hospital-a",
        "study_digest": documents.load(signed, study.StudyContract).digest,
        "policy_spki": signing.encode_spki(signing.load_public_key((signed.parent / "a.pub").read_bytes())),
        "policies": {},
    }
    assert capsys.readouterr().out.count(made["study_digest"]) == 2


def test_a_pin_is_made_of_a_contract_that_all_signed_and_that_names_the_own_key(signed, capsys):
    for arguments, code, said in (
        ({"key": "other.pub"}, 1, "wants policy key"),
        ({"key": "b.pub"}, 1, "wants policy key"),
        ({"key": "a.key"}, 3, "not a public key"),
        ({"site": "hospital-z"}, 3, "hospital-z is not a hospital"),
        ({"out": "none/pin.yml"}, 3, "cannot be written"),
    ):
        assert _pin(signed, **arguments) == code, arguments
        assert said in capsys.readouterr().err
    assert not (signed.parent / "pin.yml").exists()
    signed.write_text(signed.read_text() + "# changed\n")
    assert _pin(signed) == 1
    assert "changed after it was signed" in capsys.readouterr().err


def test_a_pin_is_never_overwritten(signed, capsys):
    assert _pin(signed) == 0
    before = (signed.parent / "pin.yml").read_bytes()
    assert _pin(signed) == 3
    assert "never overwritten" in capsys.readouterr().err
    assert (signed.parent / "pin.yml").read_bytes() == before


def test_check_kit_wants_a_kit(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert main(["check", "kit", str(folder)]) == 3
        assert "cordon:" in capsys.readouterr().err
    assert main(["check", "kit", str(tmp_path), "--pin", str(tmp_path / "none.yml")]) == 3
    assert "none.yml: cannot be read" in capsys.readouterr().err


def test_a_pin_goes_with_a_kit(signed, capsys):
    assert main(["check", "study", str(signed), "--pin", str(signed)]) == 3
    assert "--pin goes with kit" in capsys.readouterr().err
