"""What a run of real sites has that a simulation has not: who they are, one record of heads, sites that come later."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flwr.serverapp import Grid

from multimix.contract.messages import NAME_PATTERN, SiteCard, Weights
from multimix.contract.run_config import RunConfig
from multimix.errors import InputError, RunConfigError
from server.checkpoint import JobState
from server.convention import choose_convention, federated_mean_mask
from server.exchange import Post
from server.federation import JOIN_S, Federation, gather
from server.log import log
from server.private_plan import check_site, with_privacy
from server.provision.folder import FederationFolder, FederationSettings, open_federation
from server.roster import Roster
from server.rounds import Orders

FEDERATION: Final = "MULTIMIX_FEDERATION"  # environment variable: the federation's folder
_OF_A_SIMULATION: Final = (
    *(
        "data",
        "split_seed",
        "site_column",
        "hold_out",
        "labels",
        "masks",
        "pooled",
        "dirichlet_sites",
        "dirichlet_alpha",
    ),
    *("phantom_hospitals", "phantom_patients", "cache", "dp_budget", "dp_seeded"),
)


@dataclass(frozen=True)
class Production:
    """Who the sites are, and where the heads of their ledgers are kept, over all runs."""

    roster: Roster
    heads: Path


def production_of(folder: FederationFolder) -> Production:
    """Return what a federation's folder says; who is admitted is read anew each time, where it can be read."""
    last = [folder.settings]

    def settings() -> FederationSettings:
        try:
            last[0] = open_federation(folder.path).settings
        except InputError as error:
            log.warning("the federation's settings cannot be read (%s): those before hold", error.reason)
        return last[0]

    return Production(Roster(settings), folder.heads)


def check_production(config: RunConfig) -> None:
    """RunConfigError `simulation_only` where keys are set that only a simulation has; `plain_name`."""
    fields = RunConfig.model_fields
    names = [name for name in _OF_A_SIMULATION if getattr(config, name) != fields[name].default]
    if names or config.heads:
        given = ", ".join(name.replace("_", "-") for name in [*names, *(["heads"] if config.heads else [])])
        raise RunConfigError(
            "simulation_only",
            f"{given}: only a simulation has these; in a federation the sites decide. Leave them out.",
        )
    for key, value in (("out", config.out), ("start-from", config.start_from)):
        if value and not re.fullmatch(NAME_PATTERN, value):
            raise RunConfigError("plain_name", f"{key} = {value!r}: in a federation give the plain name of a run.")


def connected(grid: Grid, post: Post, config: RunConfig, state: JobState | None) -> Federation:
    """Wait for the sites and their cards: of a new run most that are admitted, of a resumed one all that were with it.

    A site that was silent in the last round is not waited for.
    """
    admitted = post.roster.admitted()
    if state is None:
        needed = config.quorum or len(admitted) // 2 + 1
        return gather(post, grid, expected=admitted, at_least=needed, join_s=JOIN_S, deadline_s=config.deadline_s)
    last = state.rounds[-1].sites if state.rounds else {}
    awake = {site for site in state.cards if site not in last or last[site].state != "absent"}
    return gather(post, grid, expected=awake & admitted, at_least=0, join_s=math.inf, deadline_s=config.deadline_s)


def leave_out_unfit(federation: Federation, config: RunConfig) -> None:
    """Decline the sites that a new private run has no place for, so that one card stops nobody else.

    Raises:
        InputError: what keeps them out, where that is all of them: then it is the configuration.
    """
    convention = choose_convention(federation.cards, config.mask_convention)
    problem: InputError | None = None
    for site, card in sorted(federation.cards.items()):
        try:
            check_site(config, card, mask_convention=convention)
        except InputError as error:
            problem = error
            federation.leave_out(site, error.reason)
    if problem is not None and not federation.training_sites():
        raise problem


def rejoined(federation: Federation, config: RunConfig, state: JobState, weights: Weights) -> JobState:
    """Return the state of a resumed job with the cards shown now; a site that has no place any more is left out."""
    for site in sorted(federation.cards):
        state = _taken_in(federation, config, state, weights, site)
    return state


def with_newcomers(
    federation: Federation, orders: Orders, state: JobState, weights: Weights
) -> tuple[Orders, JobState]:
    """Take in the sites that showed their cards since the last round: they train from the next one on.

    A private run fixes what it asks of a newcomer as it did for the others at the start. Site-level noise was made for
    the sites of the start, so no further one may join; nor may a site that has other images than it had.
    """
    before = state
    for site in federation.take_in():
        state = _taken_in(federation, orders.config, state, weights, site)
    if state is before:
        return orders, state
    mean_mask = federated_mean_mask(state.cards, state.mask_convention)
    return replace(orders, privacy=state.privacy, mean_mask=mean_mask), state


def _taken_in(federation: Federation, config: RunConfig, state: JobState, weights: Weights, site: str) -> JobState:
    try:
        state = _joined(config, state, federation.cards[site], weights)
    except InputError as error:
        federation.leave_out(site, error.reason)
    else:
        log.info("  %s joins", site)
    return state


def _joined(config: RunConfig, state: JobState, card: SiteCard, weights: Weights) -> JobState:
    known = state.cards.get(card.site)
    if known is not None and known.data_fingerprint != card.data_fingerprint:
        raise InputError("data_changed", "The site has other images than when this job began.")
    return with_privacy(config, state.model_copy(update={"cards": {**state.cards, card.site: card}}), weights)
