"""Distributed provisioning, `nvflare cert` and `nvflare package`: a private key never leaves the machine that made it.

Each party has a folder and a home of its own; `hand` is the only way between them, and all that it carries is kept to
be searched. The commands are those of provisioning/README.md, in its order.
"""

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from datetime import UTC, datetime

import nvflare.cli
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cordon import signing
from cordon.cli import main
from cordon.errors import ConfigError, SignatureError
from cordon.flare.kit import load_kit, read_kit
from fakes import amd_pki

COORDINATOR, LEAD = "fl.coordinator.example", "lead@coordinator.example"
HOSPITALS = ("hospital-a", "hospital-b")


class Party:
    """One organisation: a folder and a home, nothing shared."""

    def __init__(self, root, name, repo_root):
        self.name, self.folder, self.home, self.repo_root = name, root / name, root / f"{name}.home", repo_root
        self.folder.mkdir()
        self.home.mkdir()

    def nvflare(self, *args, ok=True):
        environment = {**os.environ, "HOME": str(self.home), "PYTHONPATH": str(self.repo_root / "custom")}
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *args],
            env=environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def cordon(self, *args):
        assert main([str(each) for each in args]) == 0, args

    def keygen(self, who):
        self.cordon("keygen", "--out", self.folder / f"{who}.key", "--pub", self.folder / f"{who}.pub")

    def request(self, template, **changes):
        """The participant definition from a template of provisioning/distributed, and the request made of it."""
        tree = yaml.safe_load((self.repo_root / "provisioning" / "distributed" / template).read_text())
        tree["participants"][0] |= changes
        (self.folder / template).write_text(yaml.safe_dump(tree))
        self.nvflare("cert", "request", "-p", template)
        return self.folder / self.name / f"{self.name}.request.zip"

    def package(self, *more):
        return self.nvflare("package", f"{self.name}.signed.zip", "--fingerprint", self.fingerprint, *more)

    def package_here(self, *more):
        """The same in this process, where what our classes import is there already: (exit code, what it said)."""
        argv = ["nvflare", "package", f"{self.name}.signed.zip", "--fingerprint", self.fingerprint, *more]
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            patch.setattr(sys, "argv", argv)
            patch.setattr(sys, "path", list(sys.path))
            patch.setenv("HOME", str(self.home))
            patch.chdir(self.folder)
            try:
                nvflare.cli.run("nvflare")
            except SystemExit as end:
                return end.code or 0, said.getvalue()
        return 0, said.getvalue()

    @property
    def fingerprint(self):
        return (self.folder / "fingerprint").read_text()

    @property
    def kit(self):
        return self.folder / "workspace" / "cordon" / "prod_00" / self.name


@pytest.fixture(scope="module")
def repository(repo_root, tmp_path_factory):
    """(parties, everything that was handed from one to another)."""
    root = tmp_path_factory.mktemp("distributed")
    names = ("security-team", COORDINATOR, LEAD, *HOSPITALS)
    return {name: Party(root, name, repo_root) for name in names}, []


@pytest.fixture(scope="module")
def federation(repository, repo_root):
    """The whole of it, as provisioning/README.md tells it, up to the kits."""
    parties, handed = repository
    team = parties["security-team"]

    def hand(path, to, name=None):
        handed.append((path.name, path.read_bytes()))
        target = to.folder / (name or path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    # 1. The security team makes the CA.
    shutil.copy(repo_root / "provisioning" / "distributed" / "profile.yml", team.folder)
    said = team.nvflare("cert", "init", "--profile", "profile.yml", "-o", "ca")
    fingerprint = re.search(r"^rootca_fingerprint_sha256: (SHA256:[0-9A-F:]+)$", said, re.MULTILINE)[1]

    # 2. Each makes its keys and its request.
    spki = {}
    for name in (COORDINATOR, LEAD, *HOSPITALS):
        party = parties[name]
        if name in HOSPITALS:
            party.keygen("policy")
            party.keygen("steward")
            request = party.request("hospital.yml", name=name, org=name.replace("-", "_"))
        else:
            request = party.request("coordinator.yml" if name == COORDINATOR else "lead.yml")
        files = [party.folder / name / f"{name}.csr", *sorted(party.folder.glob("*.pub"))]
        spki[name] = {path.stem: _spki(path) for path in files}
        # 3. The security team approves, the party packages nothing yet.
        hand(request, team)
        team.nvflare("cert", "approve", request.name, "--ca-dir", "ca", "--profile", "profile.yml")
        hand(team.folder / f"{name}.signed.zip", party)
        (party.folder / "fingerprint").write_text(fingerprint)  # by another way than the zip: read out on the telephone
        handed.append(("fingerprint", fingerprint.encode()))

    # 4. One writes the study contract; the hospitals sign it, one after the other.
    coordinator = parties[COORDINATOR]
    draft = coordinator.folder / "study.yml"
    draft.write_text(yaml.safe_dump(_contract(spki)))
    shutil.copy(repo_root / "cc_config" / "policy" / "snp-h100.yml", coordinator.folder / "judges.yml")
    round_trip = {"study.yml": "study", "judges.yml": "attestation"}
    previous = coordinator
    for name in HOSPITALS:
        party = parties[name]
        for file, kind in round_trip.items():
            hand(previous.folder / file, party)
            if previous is not coordinator:
                hand(previous.folder / f"{file}.sig", party)
            party.cordon("sign", "--key", party.folder / "policy.key", "--as", kind, party.folder / file)
        previous = party
    for name in (COORDINATOR, *HOSPITALS):
        for file in ("study.yml", "study.yml.sig"):
            hand(previous.folder / file, parties[name], f"signed/{file}")

    # 5. Each writes and signs its own documents, beside its cc_config.
    for name in (COORDINATOR, *HOSPITALS):
        shutil.copytree(repo_root / "cc_config", parties[name].folder / "cc_config")
    for end in ("", ".sig"):
        hand(previous.folder / f"judges.yml{end}", coordinator, f"cc_config/policy/snp-h100.yml{end}")
    (coordinator.folder / "signed" / "coordinator.yml").write_text(yaml.safe_dump(_coordinator()))
    for name in HOSPITALS:
        _documents(parties[name], repo_root)

    # 6. Each packages its kit; a hospital pins first.
    parties["hospital-a"].package()
    for name in (COORDINATOR, LEAD, "hospital-b"):
        assert parties[name].package_here()[0] == 0
    for name in HOSPITALS:
        party = parties[name]
        party.cordon(
            *("pin", "--study", party.folder / "signed" / "study.yml", "--site", name),
            *("--policy-key", party.folder / "policy.pub", "--out", party.folder / "pin.yml"),
            *("--site-policy", party.folder / "signed" / f"{name}.yml"),
            *("--attestation", party.folder / "cc_config" / "policy" / "snp-h100.yml"),
        )
    return parties, handed


def _spki(path):
    from cordon.cli.kit import _public_key

    return signing.encode_spki(_public_key(path))


def _contract(spki, hospitals=HOSPITALS):
    roster = [
        {
            "name": name,
            "mtls_spki": spki[name][name],
            "policy_spki": spki[name]["policy"],
            "steward_spki": spki[name]["steward"],
            "broker_spki": spki[name]["steward"],  # of `cordon broker init`, on a machine that no kit is made on
        }
        for name in hospitals
    ]
    return {
        "version": "cordon/study/v1",
        "study": "trial",
        "profile": "production",
        "coordinator": {"name": COORDINATOR, "mtls_spki": spki[COORDINATOR][COORDINATOR]},
        "roster": roster,
        "contracts": ["a" * 64],
        "models": ["FullyConnectedNet"],
        "jobs": ["oncology"],
        "time_grid_s": 60.0,
        "evaluation": {"kind": "none"},
    }


def _coordinator():
    return {
        "version": "cordon/coordinator/v1",
        "name": COORDINATOR,
        "attestation": {"policy": "attestation.yml"},
        "evaluation": {"source": None},
    }


def _documents(party, repo_root):
    signed = party.folder / "signed"
    policy = yaml.safe_load((repo_root / "provisioning" / "poc" / "hospital-a.yml").read_text())
    policy["site"] = party.name
    policy["allow"] |= {"studies": ["trial"], "contracts": ["a" * 64], "privacy_modes": ["sealed"]}
    policy["broker"] = {"url": "https://broker.example:8004", "spki": _spki(party.folder / "steward.pub")}
    (signed / f"{party.name}.yml").write_text(yaml.safe_dump(policy))
    (signed / "mappings").mkdir()
    mapping = shutil.copy(
        repo_root / "provisioning" / "poc" / "mappings" / "hospital-a.yml", signed / "mappings" / f"{party.name}.yml"
    )
    config = yaml.safe_load((party.folder / "cc_config" / "hospital-snp-h100.yml").read_text())
    judges = party.folder / "cc_config" / config["cc_attestation"]["policy"]
    key = party.folder / "policy.key"
    party.cordon("sign", "--key", key, "--as", "site", signed / f"{party.name}.yml")
    party.cordon("sign", "--key", key, "--as", "attestation", judges)
    party.cordon("sign", "--key", party.folder / "steward.key", "--as", "mapping", mapping)


# -- no private key leaves its machine -------------------------------------------------------------------------------


def _private_keys(folder):
    """Every private key below ``folder``, in the forms in which it could leak."""
    found = {}
    for path in folder.rglob("*.key"):
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        lines = pem.splitlines()[1:-1]
        forms = [pem, der, b"".join(lines), *lines[8:-1]]  # the first lines of an RSA key hold its public half
        if hasattr(key, "private_numbers"):
            numbers = key.private_numbers()
            for number in (numbers.d, numbers.p, numbers.q):
                forms += [number.to_bytes((number.bit_length() + 7) // 8, "big"), str(number).encode()]
        else:
            forms += [key.private_bytes_raw(), key.private_bytes_raw().hex().encode()]
        found[path] = forms
    return found


def _opened(name, data):
    """``data``, and everything in it if it is a zip."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for each in archive.namelist():
                yield from _opened(f"{name}!{each}", archive.read(each))


def test_nothing_that_is_handed_over_holds_a_private_key(federation):
    parties, handed = federation
    sent = [each for name, data in handed for each in _opened(name, data)]
    kinds = {name.rpartition(".")[2] for name, _ in sent}
    assert {"zip", "csr", "crt", "pem", "yml", "sig", "json"} <= kinds  # the search saw what it should
    for name, data in sent:
        assert b"PRIVATE KEY" not in data, name
    keys = {path: forms for party in parties.values() for path, forms in _private_keys(party.folder).items()}
    assert len(keys) >= 1 + 4 * 2 + 2 * 2  # the CA's; four request and kit keys; policy and steward of two hospitals
    for path, forms in keys.items():
        for name, data in sent:
            assert not any(form in data for form in forms), f"{path} in {name}"


def test_a_private_key_is_in_its_own_partys_folder_only(federation):
    parties, _ = federation
    for party in parties.values():
        forms = [form for forms in _private_keys(party.folder).values() for form in forms]
        assert forms
        for other in parties.values():
            if other is not party:
                for path in [*other.folder.rglob("*"), *other.home.rglob("*")]:
                    if path.is_file():
                        data = path.read_bytes()
                        assert not any(form in data for form in forms), path
        for path in party.folder.rglob("*.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


# -- the kits --------------------------------------------------------------------------------------------------------


def test_every_kit_reads_and_knows_its_part(federation):
    parties, _ = federation
    kits = {name: read_kit(parties[name].kit, datetime.now(UTC)) for name in (COORDINATOR, *HOSPITALS)}
    assert {name: (kit.name, kit.role) for name, kit in kits.items()} == {
        COORDINATOR: (COORDINATOR, "coordinator"),
        "hospital-a": ("hospital-a", "hospital"),
        "hospital-b": ("hospital-b", "hospital"),
    }
    assert len({kit.study.digest for kit in kits.values()}) == 1
    for name in HOSPITALS:
        party, local = parties[name], parties[name].kit / "local"
        for source, target in (
            ("signed/study.yml", "study.yml"),
            (f"signed/{name}.yml", "cordon.yml"),
            (f"signed/mappings/{name}.yml", "mappings/wdbc-1.0.0.yml"),
        ):
            for suffix in ("", ".sig"):
                assert (local / f"{target}{suffix}").read_bytes() == (party.folder / f"{source}{suffix}").read_bytes()


def test_the_certificate_is_of_the_requested_key_and_of_the_one_ca(federation):
    parties, _ = federation
    root = (parties["security-team"].folder / "ca" / "rootCA.pem").read_bytes()
    for name in (COORDINATOR, LEAD, *HOSPITALS):
        party = parties[name]
        base = "server" if name == COORDINATOR else "client"
        startup = party.kit / "startup"
        assert (startup / "rootCA.pem").read_bytes() == root
        assert _spki(startup / f"{base}.crt") == _spki(party.folder / name / f"{name}.csr")
        assert (startup / f"{base}.key").read_bytes() == (party.folder / name / f"{name}.key").read_bytes()


def test_a_kit_of_nvflare_package_has_what_one_of_nvflare_provision_has(federation):
    parties, _ = federation
    for name in (COORDINATOR, *HOSPITALS):
        local = parties[name].kit / "local"
        manager = json.loads((local / "cc_manager__p_resources.json").read_text())["components"]
        assert [each["path"] for each in manager] == ["cordon.flare.cc_manager.CordonCCManager"]
        assert (local / "app_deployer__p_resources.json").exists() == (name in HOSPITALS)
        resources = json.loads((local / "resources.json.default").read_text())
        assert resources["class_list_enforcement_mode"] == "enforce"
        assert all(entry.startswith("cordon.flare.") for entry in resources["class_allow_list"])
        if name in HOSPITALS:
            assert resources["allow_log_streaming"] is False
        roles = json.loads((local / "authorization.json.default").read_text())["permissions"]
        assert {rights["byoc"] for rights in roles.values()} == {"none"}
    start = (parties[COORDINATOR].kit / "startup" / "start.sh").read_text()
    assert "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT" in start
    target = json.loads((parties["hospital-a"].kit / "startup" / "fed_client.json").read_text())
    assert target["servers"][0]["service"]["target"] == f"{COORDINATOR}:8002"
    prod = parties["hospital-a"].kit.parent
    assert [path.name for path in prod.iterdir()] == ["hospital-a"]  # nothing of the server, whose name alone is known


def test_the_kit_passes_its_check_and_starts_where_it_is_pinned(federation, capsys, monkeypatch):
    parties, _ = federation
    for name in HOSPITALS:
        party = parties[name]
        assert main(["check", "kit", str(party.kit), "--pin", str(party.folder / "pin.yml"), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["name"], said["role"], said["profile"], said["pinned"]) == (name, "hospital", "production", True)
    hospital = parties["hospital-a"]
    monkeypatch.delenv("CORDON_PIN", raising=False)
    with pytest.raises(ConfigError, match=r"/etc/cordon/pin\.yml: missing"):
        load_kit(hospital.kit, datetime.now(UTC))
    monkeypatch.setenv("CORDON_PIN", str(parties["hospital-b"].folder / "pin.yml"))
    with pytest.raises(SignatureError, match="is for hospital-b, this kit is of hospital-a"):
        load_kit(hospital.kit, datetime.now(UTC))
    monkeypatch.setenv("CORDON_PIN", str(hospital.folder / "pin.yml"))
    with pytest.raises(ConfigError, match="tsm_absent"):  # all is well but for the hardware, which is not here
        load_kit(hospital.kit, datetime.now(UTC))
    with pytest.raises(ConfigError, match="tsm_absent"):
        load_kit(parties[COORDINATOR].kit, datetime.now(UTC))
    monkeypatch.setattr("cordon.flare.devices.require", lambda device: None)
    monkeypatch.setattr("cordon.flare.nvml.require_cc_mode", lambda: None)
    assert load_kit(hospital.kit, datetime.now(UTC)).attester.type == "snp"


def test_tee_yml_says_what_cc_config_says(federation):
    parties, _ = federation
    for name in (COORDINATOR, *HOSPITALS):
        assert yaml.safe_load((parties[name].kit / "local" / "tee.yml").read_text()) == {
            "version": "cordon/tee/v1",
            "evidence": "snp",
            "gpu": "nvidia",
            "device": "tsm",
            "vek": None,
        }


# -- a member more, and what must not be packaged --------------------------------------------------------------------


def test_a_hospital_that_joins_later(federation, repo_root, tmp_path):
    """One more request, one more contract. The others keep CA, certificate and key; each renews its pin, knowingly."""
    parties, _ = federation
    team, joined = parties["security-team"], Party(tmp_path, "hospital-c", repo_root)
    root = (team.folder / "ca" / "rootCA.pem").read_bytes()
    for who in ("policy", "steward"):
        joined.keygen(who)
    request = joined.request("hospital.yml", name="hospital-c", org="hospital_c")
    team.nvflare("cert", "approve", str(request), "--ca-dir", "ca", "--profile", "profile.yml")
    assert (team.folder / "ca" / "rootCA.pem").read_bytes() == root
    with zipfile.ZipFile(request.with_name("hospital-c.signed.zip")) as archive:
        assert archive.read("rootCA.pem") == root

    # A contract of three, signed by all, in place of the old one at hospital-a.
    members = {name: parties[name] for name in HOSPITALS} | {"hospital-c": joined}
    spki = {
        name: {path.stem: _spki(path) for path in (*party.folder.glob("*.pub"), party.folder / name / f"{name}.csr")}
        for name, party in (*members.items(), (COORDINATOR, parties[COORDINATOR]))
    }
    hospital = parties["hospital-a"]
    before = {path: path.read_bytes() for path in (hospital.folder / "signed").glob("study.yml*")}
    certificate = (hospital.kit / "startup" / "client.crt").read_bytes()
    try:
        for path in before:
            path.unlink()
        study = hospital.folder / "signed" / "study.yml"
        study.write_text(yaml.safe_dump(_contract(spki, tuple(members))))
        for party in members.values():
            party.cordon("sign", "--key", party.folder / "policy.key", "--as", "study", study)
        code, said = hospital.package_here()
        assert code == 1 and "--force" in said
        assert hospital.package_here("--force")[0] == 0
        kit = read_kit(hospital.kit, datetime.now(UTC))
        assert [each.name for each in kit.study.roster] == ["hospital-a", "hospital-b", "hospital-c"]
        assert (hospital.kit / "startup" / "client.crt").read_bytes() == certificate
        assert main(["check", "kit", str(hospital.kit), "--pin", str(hospital.folder / "pin.yml")]) == 1  # the old pin
        renewed = tmp_path / "pin.yml"
        hospital.cordon(
            *("pin", "--study", study, "--site", "hospital-a"),
            *("--policy-key", hospital.folder / "policy.pub", "--out", renewed),
        )
        assert main(["check", "kit", str(hospital.kit), "--pin", str(renewed)]) == 0
    finally:
        for path, data in before.items():
            path.write_bytes(data)
        assert hospital.package_here("--force")[0] == 0


def test_a_certificate_renewed_is_of_the_same_key(federation, own):
    """Another approval of the same request: contract and pin stay as they are."""
    team = federation[0]["security-team"]
    arguments = ("--ca-dir", "ca", "--profile", "profile.yml", "--valid-days", "2000", "--out", "renewed.zip")
    team.nvflare("cert", "approve", "hospital-a.request.zip", *arguments)
    shutil.copy(team.folder / "renewed.zip", own.folder / "hospital-a.signed.zip")
    assert own.package_here("--request-dir", "hospital-a")[0] == 0
    old, new = (
        x509.load_pem_x509_certificate((party.kit / "startup" / "client.crt").read_bytes())
        for party in (federation[0]["hospital-a"], own)
    )
    assert (new.not_valid_after_utc - old.not_valid_after_utc).days > 900
    assert new.public_key() == old.public_key()
    assert main(["check", "kit", str(own.kit), "--pin", str(own.folder / "pin.yml")]) == 0


@pytest.fixture
def own(federation, tmp_path):
    """A copy of hospital-a's folder to spoil, without a kit."""
    party = federation[0]["hospital-a"]
    copy = Party(tmp_path, "hospital-a", party.repo_root)
    copy.folder.rmdir()
    shutil.copytree(party.folder, copy.folder)
    shutil.rmtree(copy.folder / "workspace")
    return copy


def test_what_a_hospital_knows_of_its_hardware_goes_into_its_kit(own):
    signed, local = own.folder / "signed", own.kit / "local"
    (signed / "vek").mkdir()
    (signed / "vek" / "hospital-a.crt").write_bytes(b"the chip's certificate")
    (signed / "collateral").mkdir()
    revoked = amd_pki.crl("Milan")
    (signed / "collateral" / "amd-milan.crl").write_bytes(revoked)
    assert own.package_here("--request-dir", "hospital-a")[0] == 0
    assert yaml.safe_load((local / "tee.yml").read_text())["vek"] == "vek.crt"
    assert (local / "vek.crt").read_bytes() == b"the chip's certificate"
    assert read_kit(own.kit, datetime.now(UTC)).trust.collateral.crls == {"milan": revoked}

    shutil.rmtree(own.folder / "workspace")
    (signed / "collateral" / "notes.txt").write_text("not a vendor's")
    _no_kit(own, "notes.txt: not collateral")
    (signed / "collateral" / "notes.txt").unlink()
    config = own.folder / "cc_config" / "hospital-snp-h100.yml"
    text = config.read_text()
    config.write_text(text.replace("amd_sev_snp", "intel_tdx"))
    _no_kit(own, "hospital-a: tee.yml: evidence tdx has no vek")
    config.write_text(text.replace("evidence_device: tsm", "evidence_device: vtpm"))
    _no_kit(own, "evidence_device vtpm makes no snp evidence")


def test_no_kit_for_a_key_brokers_profile(own):
    _definition(own, cc_config="cc_config/broker-sgx.yml")
    _no_kit(own, "the profile of a key broker, and hospital-a runs jobs")


def _no_kit(party, *said):
    code, message = party.package_here("--request-dir", "hospital-a")
    assert code in (1, 3), message
    assert "provisioning stopped, no kit was made" in message
    for each in said:
        assert each in message
    assert not list((party.folder / "workspace").rglob("start.sh"))


def _definition(party, **arguments):
    """The participant definition in the request folder, with other arguments of the builder or another cc_config."""
    path = party.folder / "hospital-a" / "site.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["participants"][0]["cc_config"] = arguments.pop("cc_config", tree["participants"][0]["cc_config"])
    tree["builders"][0]["args"] |= arguments
    path.write_text(yaml.safe_dump(tree))


def test_no_kit_before_the_study_contract(own):
    (own.folder / "signed" / "study.yml").unlink()
    _no_kit(own, "study.yml: cannot be read")


def test_no_kit_of_a_contract_that_somebody_did_not_sign(own):
    path = own.folder / "signed" / "study.yml.sig"
    envelope = json.loads(path.read_text())
    envelope["signatures"].pop()
    path.write_text(json.dumps(envelope))
    _no_kit(own, "study.yml.sig", "signed by 1 trusted keys, want 2")


def test_no_kit_with_software_evidence(own):
    _definition(own, cc_config="cc_config/software.yml")
    _no_kit(own, "evidence software does not fit profile production")


def test_no_kit_of_a_poc_study(own):
    for arguments in ({}, {"unsafe_containers": True}):
        _definition(own, profile="poc", **arguments)
        _no_kit(own, "distributed is true or false, and true with profile production only")
    _definition(own, distributed=False, unsafe_containers=False)
    _no_kit(own, "profile 'poc' does not fit this command")


def test_no_kit_without_the_word_distributed(own):
    """The project of `nvflare package` has a server without cc_config: as a whole project it is refused."""
    _definition(own, distributed=False)
    _no_kit(own, "participant fl.coordinator.example: no cc_config")


def test_no_kit_for_another_key_than_the_contract_names(own, federation):
    """The security team certifies a key of its own under the hospital's name: the contract does not know it."""
    parties, _ = federation
    shutil.rmtree(own.folder / "hospital-a")
    request = own.request("hospital.yml", name="hospital-a", org="hospital_a")
    parties["security-team"].nvflare(
        "cert", "approve", str(request), "--ca-dir", "ca", "--profile", "profile.yml", "--out", "other.zip", "--force"
    )
    shutil.copy(parties["security-team"].folder / "other.zip", own.folder / "hospital-a.signed.zip")
    _no_kit(own, "names another mTLS key for hospital-a than the certificate in its kit")


def test_another_root_certificate_is_refused(own):
    (own.folder / "fingerprint").write_text("SHA256:" + ":".join(["00"] * 32))
    code, said = own.package_here("--request-dir", "hospital-a")
    assert code == 4 and "fingerprint does not match" in said
