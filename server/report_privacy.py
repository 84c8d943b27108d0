"""What the report says about the privacy of a run: the guarantee by site, refusals, and what nobody is protected from.

Pure functions from `Results` to small frozen values; server/report.py renders them. Epsilons and deltas are rounded up.
"""

from dataclasses import dataclass

from server.privacy_results import two_decimals, two_digits
from server.private_plan import BUDGET_REASONS
from server.report_tables import ranges
from server.results import Privacy, Results, SiteLevelPrivacy, SitePrivacy

_IN_WORDS = {
    "dp_budget_run": "the hospital's budget for a run does not allow another round",
    "dp_budget_lifetime": "the lifetime budget of the hospital's patients does not allow another round",
    "dp_epsilon": "the run as a whole asks for more epsilon than the hospital allows a run",
    "dp_required": "the hospital trains with differential privacy only",
}


@dataclass(frozen=True)
class PrivateRow:
    """What one site's patients, or every whole site, have spent; `epsilon` is a dash until the run has ended."""

    name: str
    epsilon: str
    planned: str
    delta: str
    accountants: str
    part: SitePrivacy | SiteLevelPrivacy


@dataclass(frozen=True)
class Refusals:
    """The rounds that a site did not take part in, for one reason."""

    site: str
    state: str
    reason: str
    meaning: str
    rounds: str


@dataclass(frozen=True)
class PrivacySection:
    """The section of a private run."""

    patients: tuple[PrivateRow, ...]
    site_level: PrivateRow | None
    refusals: tuple[Refusals, ...]
    ended: str  # why the run ended before its last round; empty where budgets had no part in it
    not_covered: tuple[str, ...]
    accountants: str  # with versions


def privacy_section(results: Results) -> PrivacySection | None:
    """Return what the section shows; None for a run without differential privacy."""
    privacy = results.privacy_details
    if not privacy.patients and privacy.sites is None:
        return None
    return PrivacySection(
        patients=tuple(_row(site, part) for site, part in sorted(privacy.patients.items())),
        site_level=_row("every training site", privacy.sites) if privacy.sites else None,
        refusals=refusals(results),
        ended=_ended(results),
        not_covered=_not_covered(privacy),
        accountants=", ".join(f"{name} {version}" for name, version in sorted(privacy.accountants.items())),
    )


def refusals(results: Results) -> tuple[Refusals, ...]:
    """Return who did not take part in which rounds and why, by site and reason."""
    rounds: dict[tuple[str, str, str], list[int]] = {}
    for record in results.rounds:
        for site, answer in record.sites.items():
            if answer.reason:
                rounds.setdefault((site, answer.state, answer.reason), []).append(record.round)
    return tuple(
        Refusals(site, state, reason, _IN_WORDS.get(reason, ""), ranges(numbers))
        for (site, state, reason), numbers in sorted(rounds.items())
    )


def _row(name: str, part: SitePrivacy | SiteLevelPrivacy) -> PrivateRow:
    accountants = ""
    if isinstance(part, SitePrivacy) and part.prv is not None and part.pld is not None:
        accountants = f"{two_decimals(part.prv)} \u00b7 {two_decimals(part.pld)}"
    return PrivateRow(
        name=name,
        epsilon="\u2013" if part.epsilon is None else two_decimals(part.epsilon),
        planned=two_decimals(part.planned_epsilon),
        delta=two_digits(part.delta),
        accountants=accountants or "\u2013",
        part=part,
    )


def _ended(results: Results) -> str:
    if not results.privacy_details.budget_spent:
        return ""
    last = results.rounds[-1]
    spent = sorted(site for site, answer in last.sites.items() if answer.reason in BUDGET_REASONS)
    return (
        f"The run ended by itself in round {last.round} of {results.rounds_planned}, because privacy budgets were "
        f"spent at {', '.join(spent)}. That round changed nothing; the model is the one before it."
    )


def _not_covered(privacy: Privacy) -> tuple[str, ...]:
    """Return what the guarantee says nothing about, in sentences."""
    said = [
        "Where a site released them, the figures on its test patients are exact; these did not train the model.",
        "The counts of patients and images are what each site declared or released itself.",
        "How long a round took is measured and shown; it is not noised.",
        "Choosing settings by earlier runs on the same data costs privacy that is not counted here.",
    ]
    if privacy.sites is not None:
        said.append("Who answered a round is public.")
        if not privacy.patients:
            said.append("The coordinator sees every site's update in the clear.")
    if privacy.patients:
        said.append("A patient of two hospitals spends at both.")
    return tuple(said)
