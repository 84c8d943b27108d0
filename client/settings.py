"""`site.toml`: what a hospital decides about its site, and where the parts of the site lie.

Secrets are never in it: passwords and keys are files of their own, named here.
"""

import grp
import os
import tomllib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, field_validator

from client.intake.examine import Rules
from client.intake.journal import JOURNAL, Journal, open_journal
from client.intake.pacs import Pacs
from client.intake.receiver import Receiver
from client.intake.workers import Limits
from client.policy import SitePolicy
from client.population import PopulationSettings
from client.settings_template import TEMPLATE
from multimix.config import Frozen
from multimix.contract.messages import Name
from multimix.contract.privacy import Base64
from multimix.contract.signing import public_key
from multimix.data.decode import Preprocessing
from multimix.data.manifest import MEDIASTINUM_EXCLUDED
from multimix.data.manifest import Label as LabelName
from multimix.data.pseudonyms import Pseudonyms, read_or_make_secret
from multimix.errors import SiteError
from multimix.files import write_atomically

FILE: Final = "site.toml"
_MOST_CONVENTIONS: Final = 16  # of masks on a site card
_LOWEST_DELTA: Final = 1e-10  # that the accountants price


class IntakeSettings(Frozen):
    """How images are taken in."""

    workers: Annotated[int, Field(ge=0, le=256)] = 0  # 0: one for each processor
    seconds_per_file: Annotated[float, Field(gt=0, le=600)] = 20.0
    memory_mib: Annotated[int, Field(ge=1024)] = 2048  # of address space, for each worker
    maximum_pixels: Annotated[int, Field(ge=4096)] = 64_000_000
    maximum_bytes: Annotated[int, Field(ge=1024)] = 512 << 20


class ServerSettings(Frozen):
    """The coordinator's server: where it is and who vouches for it."""

    address: str  # host:port
    ca_file: Path | None = None  # the authority of the coordinator's kit, PEM
    coordinator_key: Base64 | None = None  # who signs plans: Ed25519, public, of the coordinator's kit

    @field_validator("coordinator_key")
    @classmethod
    def _is_a_key(cls, text: str | None) -> str | None:
        return _checked_key(text)


class AgentSettings(Frozen):
    """The process that trains: who may ask it, and with what it trains. Relative paths count from the site's folder."""

    folder: Path | None = None  # of ledger, log and decisions, where the agent is another user; else the site's folder
    connector_folder: Path | None = None  # of kit and node key; connector/ in the site's folder if not given
    socket: Path | None = None  # of the agent; socket/agent.sock in the site's folder if not given
    metrics_folder: Path | None = None  # of metrics.prom, that monitoring may read; else it is with the log
    connector_group: str = ""  # may use the agent's socket, and nothing else; "" is the agent's own group
    maximum_weights_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 2048  # an order that declares more is not read
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: as many as torch takes
    device: Literal["auto", "cpu", "cuda"] = "auto"


class SiteSettings(Frozen):
    """The whole of `site.toml`."""

    name: Name
    image_size: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 256
    fit: Literal["pad", "stretch"] = "pad"
    mask_convention: Literal["mediastinum_excluded", "behind_heart"] = MEDIASTINUM_EXCLUDED
    store_group: Annotated[str, Field(pattern=r"^[^\s:/]*$")] = ""  # may read the store; "" keeps it to intake's user
    label_map: dict[str, LabelName] = Field(default_factory=dict)
    intake: IntakeSettings = IntakeSettings()
    pacs: Pacs | None = None
    receiver: Receiver | None = None
    server: ServerSettings | None = None
    agent: AgentSettings = AgentSettings()
    policy: SitePolicy = SitePolicy()
    population: PopulationSettings | None = None

    @field_validator("population")
    @classmethod
    def _population_adds_up(cls, population: PopulationSettings | None) -> PopulationSettings | None:
        """Refuse what no site card could say and no accountant could price."""
        if population is None:
            return None
        declared, labels = population.declared_patients, population.declared_labels
        if max(labels.normal, labels.pneumonia, *population.declared_masks.values()) > declared:
            raise ValueError("no label or mask can be declared for more patients than declared_patients")
        if len(population.declared_masks) > _MOST_CONVENTIONS:
            raise ValueError(f"at most {_MOST_CONVENTIONS} conventions of masks can be declared")
        if not _LOWEST_DELTA <= population.failure_probability < 1 / declared:
            raise ValueError(f"delta is from {_LOWEST_DELTA:g} to below 1 / declared_patients")
        if population.officer_key is not None:
            _checked_key(population.officer_key)
        return population

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes a square."""
        return Preprocessing(self.image_size, self.fit)

    @property
    def limits(self) -> Limits:
        """Of the workers."""
        intake = self.intake
        return Limits(intake.workers or os.cpu_count() or 1, intake.seconds_per_file, intake.memory_mib)


@dataclass(frozen=True)
class SiteFolder:
    """A site on disk."""

    path: Path
    settings: SiteSettings

    @property
    def secret(self) -> Path:
        """The file with the secret of the pseudonyms."""
        return self.path / "site.secret"

    @property
    def intake(self) -> Path:
        """What only intake reads and writes."""
        return self.path / "intake"

    @property
    def store(self) -> Path:
        """The generations that training reads."""
        return self.path / "store"

    @property
    def received(self) -> Path:
        """DICOM files that a PACS has sent and intake has not taken in yet."""
        return self.path / "received"

    @property
    def ledger(self) -> Path:
        """The folder of the population's ledger; a relative path counts from the site's folder."""
        population = self.settings.population
        named = population.ledger if population else None
        return self.path / named if named else self.agent / "ledger"

    @property
    def agent(self) -> Path:
        """What the agent writes; a relative path counts from the site's folder."""
        return self.path / (self.settings.agent.folder or "")

    @property
    def connector(self) -> Path:
        """All that the connector reads: what `join` writes."""
        return self.path / (self.settings.agent.connector_folder or "connector")

    @property
    def socket(self) -> Path:
        """Where the agent listens."""
        return self.path / (self.settings.agent.socket or Path("socket") / "agent.sock")

    @property
    def metrics(self) -> Path:
        """The folder of the agent's metrics."""
        return self.path / (self.settings.agent.metrics_folder or self.agent)

    @property
    def authority(self) -> Path:
        """The coordinator's authority, for `check`; the connector has a copy of its own."""
        return self.path / "coordinator-ca.pem"

    @property
    def population(self) -> PopulationSettings:
        """Whose privacy is spent here.

        Raises:
            SiteError: `population_missing`.
        """
        if self.settings.population is None:
            raise SiteError(
                "population_missing",
                "site.toml has no [population] section: nobody has said whose privacy is spent here and how much of "
                "it there is. Fill one in together with the privacy officer.",
            )
        return self.settings.population

    def pseudonyms(self) -> Pseudonyms:
        """The keyed hashes of this site; raises as `read_secret`."""
        return Pseudonyms(self.read_secret())

    def card_pseudonyms(self) -> Pseudonyms:
        """The keyed hash of the card's fingerprint; an agent that is another user cannot read the site's secret.

        Raises:
            SiteError: as `read_secret`.
        """
        if self.settings.agent.folder is None:
            return self.pseudonyms()
        return Pseudonyms(read_or_make_secret(self.agent / "card.secret"))

    def read_secret(self) -> bytes:
        """The site's secret; one is made only where nothing was taken in yet.

        Raises:
            SiteError: `secret_missing`, `secret_unusable`, `secret_not_private`.
        """
        if not self.secret.exists() and (self.intake / JOURNAL).exists():
            raise SiteError(
                "secret_missing", "site.secret is gone, and without it no patient is known again. Restore its backup."
            )
        return read_or_make_secret(self.secret)

    def journal(self, *, rules: str = "") -> AbstractContextManager[Journal]:
        """Open the site's journal, alone; see `client.intake.journal.open_journal`. SiteError `group_unknown`."""
        _ = self.group  # what comes of the journal is given to it: say now that there is none, not after the work
        owner = self.pseudonyms().of("owner of the journal")
        return open_journal(self.intake, self.settings.preprocessing, rules=rules, owner=owner)

    @property
    def group(self) -> int | None:
        """The number of the group that may read the store; SiteError `group_unknown`."""
        try:
            return grp.getgrnam(self.settings.store_group).gr_gid if self.settings.store_group else None
        except KeyError:
            raise SiteError(
                "group_unknown",
                "There is no such group as store_group on this machine. Make it, as the files of `multimix-site units` "
                "do, or correct site.toml.",
            ) from None

    def rules(self, *, without_preamble: bool = False) -> Rules:
        """What the workers have to know."""
        return Rules(
            secret=self.read_secret(),
            preprocessing=self.settings.preprocessing,
            maximum_pixels=self.settings.intake.maximum_pixels,
            maximum_bytes=self.settings.intake.maximum_bytes,
            without_preamble=without_preamble,
        )


def open_site(path: Path) -> SiteFolder:
    """Read a site's settings.

    Raises:
        SiteError: `site_missing`, or `settings_invalid` with the key and what is wrong, never its value.
    """
    try:
        text = (path / FILE).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise SiteError(
            "site_missing", "There is no site here: no readable site.toml. Make one with `multimix-site init NAME`."
        ) from None
    try:
        return SiteFolder(path, SiteSettings.model_validate(tomllib.loads(text)))
    except tomllib.TOMLDecodeError:
        raise SiteError("settings_invalid", "site.toml is not valid TOML. Check its quotes and brackets.") from None
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SiteError("settings_invalid", f"site.toml, {key}: {_words(first['msg'])}. Correct it.") from None


def new_site(path: Path, name: str, *, image_size: int) -> SiteFolder:
    """Make a site folder that only this user can read, with settings to fill in and a secret.

    Raises:
        SiteError: `site_exists`, `settings_invalid`, `secret_unusable`.
    """
    if (path / FILE).exists():
        raise SiteError("site_exists", "A site is here already. Give another folder.")
    try:
        SiteSettings.model_validate({"name": name, "image_size": image_size})
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        raise SiteError("settings_invalid", f"{first['loc'][0]}: {_words(first['msg'])}. Give another.") from None
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path / FILE, TEMPLATE.format(name=name, image_size=image_size).encode())
    site = open_site(path)
    read_or_make_secret(site.secret)
    return site


def _checked_key(text: str | None) -> str | None:
    if text is not None:
        try:
            public_key(text)
        except ValueError:
            raise ValueError("a key is no Ed25519 public key in base64") from None
    return text


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")  # pydantic's, before words of ours
