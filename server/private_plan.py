"""What a private run asks of each site: fixed before the first round, from the configuration and the sites' cards.

Everything here is public: which modules a site teaches, what it weighs in the average, the noise. Nothing is
derived from a site's images: a site that trains privately declares its numbers by hand.
"""

from collections.abc import Mapping

from multimix.contract.messages import MINIMUM_CLASS_PATIENTS, MODULES, SiteCard, Weights, private_arrays
from multimix.contract.privacy import ModuleName, PatientPrivacy
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError, Refused, RunConfigError
from multimix.privacy.accountant import Mechanism, affordable_steps, calibrate_noise, default_delta, price
from multimix.privacy.central import SiteLevel, calibrate_site_level, explanation, hollow, usual_delta
from server.checkpoint import JobState
from server.log import log
from server.results import RoundResult

BUDGET_REASONS = ("dp_budget_run", "dp_budget_lifetime")
# Further refusals that a site decides on plan, policy and ledger alone, before it reads a pixel or reserves anything.
_BEFORE_TRAINING = {
    "batch_too_large",
    "countersignature_invalid",
    "countersignature_missing",
    "device_unavailable",
    "image_size",
    "network_too_wide",
    "non_private_not_signed",
    "plan_signature",
    "population_exposed",
    "protocol_unknown",
    "request_malformed",
    "site_held_out",
    "site_not_configured",
    "too_many_steps",
}
# Where an order is asked again these may follow a reservation, so a round counts as spent.
_DECIDED_BY_PEOPLE = {"agent_unavailable", "job_not_approved", "site_busy", "site_left", "site_paused"}

_MODULE_NAMES: tuple[ModuleName, ...] = ("encoder", "classifier", "decoder")


def chosen_modules(config: RunConfig) -> tuple[ModuleName, ...]:
    """Return the modules that learn; RunConfigError `dp_modules` for a name that is none, and for the encoder alone."""
    asked = [name.strip() for name in config.dp_modules.split(",") if name.strip()]
    if not asked or not set(asked) <= set(MODULES):
        raise RunConfigError("dp_modules", f"dp-modules = {config.dp_modules!r}: choose among {', '.join(MODULES)}.")
    if set(asked) == {"encoder"}:
        raise RunConfigError("dp_modules", "dp-modules = 'encoder' trains on nothing: add classifier, decoder or both.")
    return tuple(name for name in _MODULE_NAMES if name in asked)


def patient_privacy(config: RunConfig, card: SiteCard, *, mask_convention: str | None) -> PatientPrivacy:
    """Return one site's private work for the whole run.

    A site supervises the classifier if it declares enough patients of both classes, the decoder if it declares
    masks; one that declares neither teaches all modules by consistency.

    Raises:
        RunConfigError: `dp_parameters` where no noise keeps to the epsilon, or the run cannot be priced;
            `dp_modules`.
    """
    patients = card.training_patients
    taught = _taught(config, card, mask_convention)
    try:
        delta = config.dp_delta or default_delta(patients)
        steps = config.rounds * config.local_steps
        noise = config.dp_noise_multiplier or calibrate_noise(
            target_epsilon=config.dp_epsilon, delta=delta, sampling_rate=config.dp_sampling_rate, steps=steps
        )
        price({Mechanism(noise, config.dp_sampling_rate): steps}, delta=delta)  # what cannot be priced is not begun
    except Refused as refused:
        raise RunConfigError(
            "dp_parameters",
            f"The privacy asked for cannot be had at {card.site} with {patients} declared patients ({refused}): change "
            "dp-epsilon, dp-noise-multiplier, dp-sampling-rate, dp-delta, rounds or local-steps.",
        ) from None
    return PatientPrivacy(
        noise_multiplier=noise,
        clip_norm=config.dp_clip_norm,
        sampling_rate=config.dp_sampling_rate,
        declared_patients=patients,
        images_per_patient=config.dp_images_per_patient,
        delta=delta,
        modules=tuple(taught),
        parameters=config.dp_parameters,
        module_weights=taught,
        rounds=config.rounds,
        epsilon=config.dp_epsilon,  # with noise of its own the run ends where this is spent
    )


def _taught(config: RunConfig, card: SiteCard, mask_convention: str | None) -> dict[ModuleName, float]:
    """Return the modules that a site teaches and its weight in each: labelled patients, and a share of the others."""
    labels, patients = card.labelled_patients, card.training_patients
    both_classes = min(labels.normal, labels.pneumonia) >= MINIMUM_CLASS_PATIENTS
    supervises = both_classes or config.one_class_sites != "exclude"
    labelled = labels.normal + labels.pneumonia if supervises else 0
    masked = sum(count for name, count in card.masked_patients.items() if mask_convention in (None, name))
    counts = {"encoder": max(labelled, masked), "classifier": labelled, "decoder": min(masked, patients)}
    neither = not labelled and not masked
    network = config.method().network
    exists = {"encoder": True, "classifier": network.classification, "decoder": network.segmentation}
    return {
        name: counts[name] + config.unlabelled_weight * (patients - min(counts[name], patients))
        for name in chosen_modules(config)
        if exists[name] and (counts[name] or neither)
    }


def learning(weights: Weights, privacy: Mapping[str, PatientPrivacy]) -> frozenset[str]:
    """Return the arrays that the plan of any site lets learn; without private plans all but the fixed constants."""
    if not privacy:
        return frozenset(name for name in weights if ".standard_" not in name)
    return frozenset(name for dp in privacy.values() for name in private_arrays(weights, dp))


def before_training(reason: str) -> bool:
    """Whether a site that refuses for this reason has spent nothing and told nothing of its patients.

    Any other reason, known or not, counts as a round spent.
    """
    return reason.startswith("dp_") or reason in _BEFORE_TRAINING


def is_public(reason: str) -> bool:
    """Whether a reason depends on plan, policy and ledger alone, never on images or on an update."""
    return before_training(reason) or reason in _DECIDED_BY_PEOPLE or reason.startswith("ledger_")


def with_privacy(config: RunConfig, state: JobState, weights: Weights) -> JobState:
    """Return the state with what is asked of each training site, and say what it means before anything starts.

    What was fixed once stays as it was; a site that is new to the job gets its own.

    Raises:
        InputError: as `patient_privacy`; `weighting`, `compare_local` where these do not go with a private run;
            `dp_hollow` where a site-level claim means little and is not accepted; `too_many_sites` where sites joined
            that the site-level noise was not made for.
    """
    if config.dp != "none" and config.weighting != "per-module":
        raise RunConfigError(
            "weighting",
            f"weighting = {config.weighting!r} counts the patients of each round, but what a site counts in a private "
            "run is fixed in the plan, before the first round: leave weighting out, or set dp = none.",
        )
    if config.dp != "none" and config.compare_local:
        raise RunConfigError(
            "compare_local", "compare-local trains on every image once more, outside of the guarantee: leave it out."
        )
    privacy = dict(state.privacy)
    for site, card in sorted(state.cards.items()) if config.patient_level else ():
        if card.role == "train" and site not in privacy:
            privacy[site] = patient_privacy(config, card, mask_convention=state.mask_convention)
            _say(site, privacy[site], config)
    check_taught(privacy)
    parameters = sum(weights[name].size for name in learning(weights, privacy))
    site_level = _site_level(config, state, parameters) if config.site_level else None
    return state.model_copy(update={"privacy": privacy, "site_level": site_level, "parameters": parameters})


def _site_level(config: RunConfig, state: JobState, parameters: int) -> SiteLevel:
    """Fix the site-level noise for the sites of the job, print what it is worth, and ask where that is little."""
    sites = sum(card.role == "train" for card in state.cards.values())
    if state.site_level is not None:
        if sites > state.site_level.sites:
            raise InputError(
                "too_many_sites",
                f"{sites} sites are here to train, but the noise of this run was fixed for {state.site_level.sites}: "
                "disconnect those that are new, or begin a new run with another out.",
            )
        return state.site_level
    settings = calibrate_site_level(
        target_epsilon=config.dp_site_epsilon,
        delta=config.dp_site_delta or usual_delta(sites),
        rounds=config.rounds,
        sites=sites,
        clip_norm=config.dp_site_clip_norm,
    )
    words = explanation(settings, parameters)
    if hollow(settings, parameters) and not config.dp_accept:
        raise RunConfigError("dp_hollow", words)
    for line in words.splitlines():
        log.info("%s", line)
    return settings


def _say(site: str, dp: PatientPrivacy, config: RunConfig) -> None:
    """Log what a run will cost a site's patients, and how far a budget of dp-epsilon goes."""
    rounds = forecast(dp, limit_epsilon=config.dp_epsilon, local_steps=config.local_steps)
    log.info(
        "  %-16s %s: noise %.3f C, rate %.3g of %d patients; epsilon %.3g at delta %.2g lasts %d rounds of this kind",
        *(site, "+".join(dp.modules), dp.noise_multiplier, dp.sampling_rate, dp.declared_patients),
        *(config.dp_epsilon, dp.delta, rounds),
    )


def budgets_are_spent(record: RoundResult) -> bool:
    """Whether every site that did not train this round has no budget left for it."""
    reasons = [site.reason or "" for site in record.sites.values() if site.state != "accepted"]
    return bool(reasons) and all(reason in BUDGET_REASONS for reason in reasons)


def forecast(dp: PatientPrivacy, *, limit_epsilon: float, local_steps: int) -> int:
    """Return how many rounds of this kind a budget of `limit_epsilon` allows, at most ten times those planned."""
    steps = affordable_steps(
        mechanism=Mechanism(dp.noise_multiplier, dp.sampling_rate),
        delta=dp.delta,
        limit_epsilon=limit_epsilon,
        at_most=10 * dp.rounds * local_steps,
    )
    return steps // local_steps


def check_site(config: RunConfig, card: SiteCard, *, mask_convention: str | None) -> None:
    """Raise InputError where a private run has no place for a site, as `patient_privacy` and `check_taught` do."""
    if config.patient_level and card.role == "train":
        check_taught({card.site: patient_privacy(config, card, mask_convention=mask_convention)})


def check_taught(plans: dict[str, PatientPrivacy]) -> None:
    """InputError `dp_nothing_taught` where a site would have nothing to learn."""
    empty = sorted(site for site, dp in plans.items() if not {"classifier", "decoder"} & set(dp.modules))
    if empty:
        raise InputError("dp_nothing_taught", f"{', '.join(empty)}: no module of dp-modules can be taught there.")
