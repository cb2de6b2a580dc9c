"""A POC in which nobody lies (jobs/oncology_masked protects against no lying site): what becomes of the templates."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from cordon import documents, signing
from cordon.errors import ConfigError
from cordon.flare import poc, poc_documents
from cordon.flare.provision import CordonBuilder
from cordon.site.policy import SitePolicy, UnsafePoc
from fakes.federation_kits import BROKER, CONTRACT, ROOT

SITES = ("hospital-c", "hospital-d", "hospital-e")
TEMPLATES = ROOT / "provisioning" / "poc"


def policies(folder: Path, all_honest: bool) -> dict[str, SitePolicy]:
    names = ("server", *SITES)
    made = poc_documents.make(
        templates=TEMPLATES,
        contracts=[CONTRACT],
        policies=dict.fromkeys(names, ROOT / "cc_config" / "policy" / "software.yml"),
        server="server",
        certificates={name: signing.encode_spki(generate_private_key(SECP256R1()).public_key()) for name in names},
        client_ca=b"",
        broker=BROKER,
        state=folder / "state",
        now=datetime.now(UTC),
        all_honest=all_honest,
    )
    return {site: documents.load(made.folder / f"{site}.yml", SitePolicy) for site in SITES}


def test_the_slow_site_stays_slow_and_the_liar_is_honest(tmp_path):
    made = policies(tmp_path, all_honest=True)
    assert made["hospital-c"].unsafe_poc is None and made["hospital-e"].unsafe_poc is None
    assert made["hospital-d"].unsafe_poc == UnsafePoc(extra_delay_s=4.0)


def test_the_liar_lies_unless_it_is_told_not_to(tmp_path):
    assert policies(tmp_path, all_honest=False)["hospital-e"].unsafe_poc == UnsafePoc(
        flip_labels=True, scale_update=10.0
    )


def test_the_project_file_of_a_run_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(poc, "_nvflare", lambda *args, **kwargs: "")
    for honest in (False, True):
        poc.prepare(ROOT / "provisioning" / "project.poc.yml", tmp_path / str(honest), all_honest=honest)
        project = yaml.safe_load((tmp_path / str(honest) / "project.poc.yml").read_text())
        (arguments,) = [each["args"] for each in project["builders"] if each["path"] == poc.BUILDER]
        assert arguments["all_honest"] is honest


def test_only_a_poc_is_told_who_lies():
    with pytest.raises(ConfigError, match="all_honest"):
        CordonBuilder("production", "signed", all_honest=True)._check_mode("normal")
    with pytest.raises(ConfigError, match="all_honest"):
        CordonBuilder("poc", "poc", all_honest="yes")._check_mode("poc")  # type: ignore[arg-type]
