"""What a run has cost, for the report: priced by the server from what it asked, whatever the sites say.

Where a figure is shown with fewer digits it is rounded up: what is read is never below what was spent.
"""

from decimal import ROUND_CEILING, Context, Decimal

from multimix.contract.privacy import PatientPrivacy
from multimix.contract.run_config import RunConfig
from multimix.errors import Refused
from multimix.privacy.accountant import Mechanism, Price, price, versions
from multimix.privacy.central import noise_to_signal, spent
from server.checkpoint import JobState
from server.private_plan import before_training
from server.results import Privacy, RunStatus, SiteLevelPrivacy, SitePrivacy

NOT_PRIVATE = "No differential privacy: epsilon = infinity. The model can reveal images it was trained on."
SEEDED = "NOT PRIVATE (epsilon = infinity): a simulation whose noise follows from a known seed."


def privacy_of(config: RunConfig, state: JobState, *, status: RunStatus) -> Privacy:
    """Return the guarantees of a run; epsilons are priced once it has ended, which takes seconds a site."""
    final = status != "running"
    under_way = status == "stopped" and state.round < config.rounds and not state.budget_spent
    if not state.privacy and state.site_level is None:
        return Privacy()
    return Privacy(
        patients={
            site: _site(dp, _rounds(state, site, under_way=under_way), config, final=final)
            for site, dp in sorted(state.privacy.items())
        },
        sites=_site_level(state, final=final),
        budget_spent=state.budget_spent,
        seeded=config.dp_seeded and config.patient_level,
        accountants=versions(),
    )


def _rounds(state: JobState, site: str, *, under_way: bool) -> int:
    """Return the rounds that a site may have spent on: all but those it refused beforehand, and one under way."""
    asked = [record.sites[site] for record in state.rounds if site in record.sites]
    refused = sum(answer.state == "refused" and before_training(answer.reason or "") for answer in asked)
    refused += sum(answer.state == "absent" and answer.reason == "silent" for answer in asked)  # it was sent no order
    return len(asked) - refused + under_way


def _site(dp: PatientPrivacy, rounds: int, config: RunConfig, *, final: bool) -> SitePrivacy:
    steps = rounds * config.local_steps
    cost = _priced(dp, steps, of=config.rounds * config.local_steps) if final else None
    return SitePrivacy(
        epsilon=cost.epsilon if cost else None,
        prv=cost.prv if cost else None,
        pld=cost.pld if cost else None,
        delta=dp.delta,
        planned_epsilon=dp.epsilon,
        noise_multiplier=dp.noise_multiplier,
        clip_norm=dp.clip_norm,
        sampling_rate=dp.sampling_rate,
        declared_patients=dp.declared_patients,
        images_per_patient=dp.images_per_patient,
        modules=dp.modules,
        parameters=dp.parameters,
        rounds=rounds,
        steps=steps,
    )


def _priced(dp: PatientPrivacy, steps: int, *, of: int) -> Price:
    """Price the steps; where the accountants refuse, all steps that were planned, which could be priced beforehand."""
    mechanism = Mechanism(dp.noise_multiplier, dp.sampling_rate)
    try:
        return price({mechanism: steps}, delta=dp.delta)
    except Refused:
        return price({mechanism: of}, delta=dp.delta)


def _site_level(state: JobState, *, final: bool) -> SiteLevelPrivacy | None:
    settings = state.site_level
    if settings is None:
        return None
    done = min(len(state.rounds), settings.rounds)
    return SiteLevelPrivacy(
        epsilon=spent(settings, done).epsilon if final else None,
        delta=settings.delta,
        planned_epsilon=settings.epsilon,
        noise_multiplier=settings.noise_multiplier,
        clip_norm=settings.clip_norm,
        sites=settings.sites,
        rounds=done,
        noise_to_signal=noise_to_signal(settings, state.parameters),
    )


def in_words(privacy: Privacy) -> str:
    """Return the guarantee in a sentence or two, worst case first."""
    if privacy.seeded:
        return SEEDED
    words = []
    if privacy.patients:
        site, worst = max(privacy.patients.items(), key=lambda item: _epsilon(item[1]))
        delta = max(part.delta for part in privacy.patients.values())  # the largest, since one delta stands for all
        words.append(
            "Patients: by this run alone each patient of a training hospital has epsilon = "
            f"{two_decimals(_epsilon(worst))} (at {site}) at delta = {two_digits(delta)} at most; a hospital's "
            "statement has its lifetime."
        )
    if privacy.sites is not None:
        words.append(
            f"Hospitals: epsilon = {two_decimals(_epsilon(privacy.sites))} at delta = "
            f"{two_digits(privacy.sites.delta)} for each of {privacy.sites.sites} against whoever sees the model, not "
            "against the coordinator."
        )
        if not privacy.patients:
            words.append("Single patients are not protected from the coordinator (epsilon = infinity).")
    return " ".join(words) or NOT_PRIVATE


def two_decimals(epsilon: float) -> str:
    """Return a figure with two decimals, rounded up."""
    return str(Decimal(repr(epsilon)).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def two_digits(delta: float) -> str:
    """Return a small figure with two significant digits, rounded up."""
    return f"{Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(delta)):.2g}"


def _epsilon(part: SitePrivacy | SiteLevelPrivacy) -> float:
    """Return what was spent, or before the end what is planned."""
    return part.planned_epsilon if part.epsilon is None else part.epsilon
