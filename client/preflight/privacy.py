"""Is patients' privacy in order: a population declared, its ledger whole, budget left, an officer where one is needed?

These lines may be mailed to the coordinator: they hold nothing counted from the images but whether it is far from what
was declared.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from client.population import PopulationSettings
from client.preflight.lines import Line
from client.privacy_report import ledger_of
from client.remedies import remedy_of
from client.settings import SiteFolder
from multimix.errors import Refused, SiteError
from multimix.privacy.accountant import price
from multimix.privacy.entries import Entry
from multimix.privacy.history import history_of, non_private, seeded
from multimix.privacy.ledger import KEY_FILE
from multimix.privacy.statement_sections import upwards

_NAME: Final = "privacy"
_FAR_FEWER: Final = 0.5  # declared, of those there are
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def privacy_lines(site: SiteFolder) -> Iterator[Line]:
    """Yield the checks of `[population]`, its ledger and its budget."""
    population = site.settings.population
    if population is None:
        fix = "Fill in [population] of site.toml with the privacy officer, then run multimix-site ledger begin."
        yield Line(_NAME, "WARN", "No patient population is declared: this site can take part in no training.", fix)
        return
    yield from _officer(site, population)
    yield from _ledger(site, population)
    yield from _declared(site, population)
    server = site.settings.server
    if server is not None and server.coordinator_key is None:
        fix = "Fill in server.coordinator_key from the coordinator's kit."
        yield Line(_NAME, "WARN", "No coordinator's key is named: nobody may order training here.", fix)


def _officer(site: SiteFolder, population: PopulationSettings) -> Iterator[Line]:
    if site.settings.policy.allow_non_private and population.officer_key is None:
        fix = "Name the officer (population.officer_key), or set policy.allow_non_private to false."
        yield Line(_NAME, "FAIL", "Training without privacy is allowed, and no officer is named to sign it.", fix)


def _ledger(site: SiteFolder, population: PopulationSettings) -> Iterator[Line]:
    try:
        ledger = ledger_of(site)
        yield _pen(site.ledger)
        yield _budget(ledger.entries, population)
    except Refused as refusal:
        finding = f"What was spent of the patients' privacy cannot be said ({refusal.reason})."
        yield Line(_NAME, "FAIL", finding, remedy_of(refusal) or "Please report this line.")


def _pen(folder: Path) -> Line:
    """Judge the key that entries are signed with, and who can get at it."""
    try:
        modes = [path.stat().st_mode for path in (folder, folder / KEY_FILE)]
    except OSError:
        return Line(_NAME, "FAIL", "The ledger's key is missing.", remedy_of(Refused("ledger_key_unusable")))
    if any(mode & _OTHERS for mode in modes):
        fix = "Run `chmod -R u=rwX,go=` on the ledger's folder."
        return Line(_NAME, "FAIL", "Others may use the ledger's folder or its key.", fix)
    return Line(_NAME, "PASS", "The population is declared, and its ledger is whole.")


def _budget(entries: tuple[Entry, ...], population: PopulationSettings) -> Line:
    if non_private(entries) or seeded(entries):
        fix = "multimix-site statement says what that means. Training on needs the privacy officer's signature."
        return Line(_NAME, "WARN", "The lifetime's epsilon is infinity: there was training without privacy.", fix)
    limit = population.epsilon_lifetime
    spent = price(history_of(entries), delta=population.failure_probability).epsilon
    found = f"Epsilon {upwards(spent)} of {limit:g} is spent."
    if spent >= limit:
        fix = "No round will be answered. Raising the limit is the hospital's decision, with its privacy officer."
        return Line(_NAME, "WARN", found, fix)
    return Line(_NAME, "PASS", f"{found} multimix-site budget says how many rounds that leaves.")


def _declared(site: SiteFolder, population: PopulationSettings) -> Iterator[Line]:
    """Compare with the store; the number itself stays out of the line."""
    trained = _training_patients(site)
    fix = "Compare with multimix-site show. Steps are divided by the declared number; privacy holds either way."
    if trained is not None and population.declared_patients > trained:
        yield Line(_NAME, "WARN", "More patients are declared than the store trains on.", fix)
    elif trained is not None and population.declared_patients < _FAR_FEWER * trained:
        yield Line(_NAME, "WARN", "Far fewer patients are declared than the store trains on.", fix)


def _training_patients(site: SiteFolder) -> int | None:
    from client.hospital import hospital_of  # noqa: PLC0415  (imports torch)
    from multimix.data.sampling import patients  # noqa: PLC0415  (as above)

    try:
        hospital, store = hospital_of(site)
    except SiteError:  # the lines on images say so
        return None
    return patients(store, hospital.evaluation_rows(store, "train"))
