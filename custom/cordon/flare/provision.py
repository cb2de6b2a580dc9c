"""Provisioning builder: puts Cordon's documents and components into each kit, and stops at anything that does not hold.

In a project file it stands after StaticFileBuilder and CertBuilder (it replaces parts of their files and compares
certificates) and before SignatureBuilder (which signs what it wrote)::

    - path: cordon.flare.provision.CordonBuilder
      args: {profile: production, documents: signed}

``profile: poc`` (``nvflare poc prepare``) makes all keys, fills the templates and signs for everybody. ``production``
packages only what the hospitals signed. The first ``nvflare provision``, while there is no study contract yet, issues
certificates and nothing that could start; the contract names them, the hospitals sign it, the second run makes kits.
``distributed: true`` makes one kit on its participant's own machine, where its private key was made and stays
(``nvflare package``; the builder stands in the participant definition that ``nvflare cert request`` was given).
``unsafe_containers: true`` beside ``profile: poc`` makes POC kits by ``nvflare provision`` (docker/project.yml).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from nvflare.lighter.constants import PropKey, ProvFileName, ProvisionMode
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder

from cordon import documents, signing
from cordon.errors import ConfigError, CordonError
from cordon.flare import cc_profile, kit_files, packaging
from cordon.flare.cc_profile import CCConfig

ROOT_CA = "rootCA.pem"
PROFILES = {"poc": ProvisionMode.POC, "production": ProvisionMode.NORMAL}


def _fail_closed(step: Callable[..., None]) -> Callable[..., None]:
    """End the command with the reason in words. FLARE's provisioner would print a traceback, and POC would go on."""

    @functools.wraps(step)
    def checked(self: CordonBuilder, project: Project, ctx: ProvisionContext) -> None:
        try:
            step(self, project, ctx)
        except CordonError as error:
            print(f"cordon: provisioning stopped, no kit was made: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error

    return checked


class CordonBuilder(Builder):
    """See the module's docstring.

    Args:
        profile: poc | production; must fit the command (``nvflare poc prepare`` | ``nvflare provision``).
        distributed: for ``nvflare package``, production only: makes the one kit whose certificate and key lie here.
        unsafe_containers: lets profile poc be provisioned by ``nvflare provision``, for containers on one machine: POC
            keys, software evidence.
        documents: folder with ``study.yml``, ``coordinator.yml``, ``<hospital>.yml`` (site policy) and
            ``mappings/<hospital>.yml``; for production each hospital's file with its ``.sig``.
        contracts: feature contracts whose digests a POC study allows; production lists them in the signed study.
        broker: POC only: where the key broker of all hospitals listens, and its budget (``poc_broker.Place``).
        all_honest: POC only: no site lies on purpose, whatever the templates' ``unsafe_poc`` says; slow ones stay slow.
        base: folder against which this builder's paths and ``cc_config`` resolve. Default: the folder of the project
            file that the command line names (-i or -p), else (``nvflare package`` names none) the current folder.
    """

    def __init__(
        self,
        profile: str,
        documents: str,
        contracts: list[str] | None = None,
        base: str | None = None,
        distributed: bool = False,
        unsafe_containers: bool = False,
        broker: dict[str, Any] | None = None,
        all_honest: bool = False,
    ) -> None:
        super().__init__()
        self.profile = profile
        self.distributed = distributed
        self.unsafe_containers = unsafe_containers
        self.documents = documents
        self.contracts = contracts or []
        self.base = base
        self.broker = broker
        self.all_honest = all_honest
        self._profiles: dict[str, tuple[Path, CCConfig]] = {}

    @_fail_closed
    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Read every cc_config before anything is made."""
        self._check_mode(ctx.get_provision_mode())
        if project.get_relays():
            raise ConfigError("relays are not supported: evidence is exchanged between coordinator and hospitals")
        for participant in self._kits(project):
            given = participant.get_prop(PropKey.CC_CONFIG)
            if not isinstance(given, str) or not given:
                raise ConfigError(f"participant {participant.name}: no cc_config; every server and client needs one")
            path = self._resolve(given)
            config = cc_profile.load(path)
            if (config.evidence == "software") != (self.profile == "poc"):
                raise ConfigError(f"{path}: evidence {config.evidence} does not fit profile {self.profile}")
            self._profiles[participant.name] = (path, config)
            if not config.runs_jobs:
                raise ConfigError(f"{path}: the profile of a key broker, and {participant.name} runs jobs")
            participant.set_prop(PropKey.CC_ENABLED, True)  # FLARE then signs the whole kit

    @_fail_closed
    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write Cordon's part of each kit."""
        now = datetime.now(UTC)
        Path(ctx.get_state_dir()).chmod(0o700)  # FLARE keeps the CA's and everybody's private key in there
        mine = self._kits(project)
        for participant in mine:
            if (Path(ctx.get_ws_dir(participant)) / ProvFileName.SIGNATURE_JSON).exists():
                raise ConfigError("put CordonBuilder before SignatureBuilder: its files must be signed too")
        for participant in _attested(project):
            if participant not in mine and _certificate_path(participant, ctx).exists():
                raise ConfigError(
                    f"distributed: true is for `nvflare package`, which makes one kit; this project also makes "
                    f"{participant.name}'s, which would be a kit without attestation"
                )
        certificates = {each.name: _certificate(each, ctx) for each in mine}
        folder = self._resolve(self.documents)
        if self._certificates_only():
            return
        policies = {name: cc_profile.policy_path(path, config) for name, (path, config) in self._profiles.items()}
        if self.profile == "poc":
            from cordon.flare import poc_broker, poc_documents  # not in production images

            made = poc_documents.make(
                templates=folder,
                contracts=[self._resolve(path) for path in self.contracts],
                policies=policies,
                server=project.get_server().name,
                certificates=certificates,
                client_ca=documents.read_bytes(Path(ctx.get_kit_dir(project.get_server())) / ROOT_CA),
                broker=poc_broker.place(self.broker),
                all_honest=self.all_honest,
                state=Path(ctx.get_state_dir()),
                now=now,
            )
            folder, policies = made.folder, made.policies
            _name_coordinator(folder / "coordinator.yml", project.get_server().name)
        agreed = packaging.check_study(
            folder, self.profile, project.get_server().name, certificates, now, everybody=not self.distributed
        )

        for participant in mine:
            local = Path(ctx.get_local_dir(participant))
            _, config = self._profiles[participant.name]
            hospital = participant.name != project.get_server().name
            log_streaming: bool | None = None
            if hospital:
                policy = packaging.pack_hospital(
                    folder, policies[participant.name], local, participant.name, agreed, now
                )
                log_streaming = policy.egress.log_streaming
            else:
                packaging.pack_coordinator(folder, policies[participant.name], local, agreed, now)
                kit_files.limit_outcome_wait(Path(ctx.get_kit_dir(participant)))
            packaging.pack_collateral(folder, local)
            if self.profile == "poc":
                poc_documents.write_tee(Path(ctx.get_state_dir()), local, participant.name, now)
            else:
                packaging.pack_tee(folder, local, participant.name, config)
            kit_files.write_components(local, config, hospital)
            kit_files.restrict_resources(local, log_streaming)
            kit_files.write_authorization(local)

    @_fail_closed
    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Without a study contract: leave certificates only, so that nothing can start unattested."""
        if not self._certificates_only():
            return
        roster = []
        for participant in project.get_all_participants():
            for path in Path(ctx.get_ws_dir(participant)).rglob("*"):
                if path.is_file() and path.suffix not in (".crt", ".pem"):
                    path.unlink()
        for participant in _attested(project):
            roster.append({"name": participant.name, "mtls_spki": _certificate(participant, ctx)})
        path = Path(ctx.get_wip_dir()) / "roster.yml"
        path.write_text(yaml.safe_dump(roster, sort_keys=False))
        ctx.info(
            f"{self._resolve(self.documents) / 'study.yml'}: no study contract yet, so only certificates were issued; "
            "nothing here can start. Next: write it with the keys in roster.yml, let every hospital sign it "
            "(cordon sign --as study), put it there with the signed site policies, and run this command again."
        )

    def _check_mode(self, mode: str) -> None:
        """ConfigError unless the profile fits the command that runs."""
        if self.unsafe_containers not in (True, False) or (self.unsafe_containers and self.profile != "poc"):
            raise ConfigError("unsafe_containers is true or false, and true with profile poc only")
        if self.distributed not in (True, False) or (self.distributed and self.profile != "production"):
            raise ConfigError("distributed is true or false, and true with profile production only")
        wanted = ProvisionMode.NORMAL if self.unsafe_containers else PROFILES.get(self.profile)
        if wanted != mode:
            raise ConfigError(
                f"profile {self.profile!r} does not fit this command: poc is for `nvflare poc prepare`, production for "
                "`nvflare provision`, and so is poc with unsafe_containers, for containers on one machine"
            )
        if self.all_honest not in (True, False) or (self.all_honest and self.profile != "poc"):
            raise ConfigError(
                "all_honest is true or false, and true with profile poc only: elsewhere no site is told to lie"
            )
        if self.broker is not None and self.profile != "poc":
            raise ConfigError("broker is for profile poc: in production each hospital runs its own (cordon broker)")

    def _certificates_only(self) -> bool:
        if self.profile != "production" or self.distributed:
            return False
        return not (self._resolve(self.documents) / "study.yml").exists()

    def _kits(self, project: Project) -> list[Participant]:
        """The participants whose kits are made here; ``nvflare package`` has one, and knows the server by name only."""
        if not self.distributed:
            return _attested(project)
        clients = project.get_clients()
        return list(clients) if clients else [project.get_server()]

    def _resolve(self, path: str) -> Path:
        return (project_folder(sys.argv[1:]) / (self.base or "") / path).resolve()


def project_folder(arguments: list[str]) -> Path:
    """Folder of the project file that an ``nvflare`` command line names; FLARE does not tell builders which it is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = ("-i", "--project-input", "--project_input", "-p", "--project-file", "--project_file")
    parser.add_argument(*names, dest="file", nargs="?")
    named, _ = parser.parse_known_args(arguments)
    if named.file and Path(named.file).is_file():
        return Path(named.file).resolve().parent
    return Path.cwd()


def _attested(project: Project) -> list[Participant]:
    """The participants that run jobs, coordinator first."""
    return [project.get_server(), *project.get_clients()]


def _name_coordinator(path: Path, name: str) -> None:
    """Put the server's name into the POC coordinator config: one template serves projects that call it differently."""
    tree = documents.load(path, dict)
    path.write_text(yaml.safe_dump({**tree, "name": name}, sort_keys=False))


def _certificate_path(participant: Participant, ctx: ProvisionContext) -> Path:
    base = "server" if participant.type == "server" else "client"
    return Path(ctx.get_kit_dir(participant)) / f"{base}.crt"


def _certificate(participant: Participant, ctx: ProvisionContext) -> str:
    """SPKI (base64 DER) of the certificate that the kit holds."""
    return signing.encode_spki(signing.load_public_key(documents.read_bytes(_certificate_path(participant, ctx))))
