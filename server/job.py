"""One job from the first card to the report: the part of the server that is the same everywhere.

`server.app` runs it in Flower, `sim` in one process; both give it a grid.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from multimix.contract.messages import Weights, canonical_json, sha256_text
from multimix.contract.run_config import RunConfig
from multimix.errors import CheckpointError, InputError, RunConfigError
from multimix.locks import held
from multimix.network import new_network
from multimix.weights import export, load_model, save_model
from server.checkpoint import FILE, JobState, read_checkpoint, write_checkpoint
from server.convention import choose_convention, federated_mean_mask
from server.exchange import Post
from server.federation import Federation, describe
from server.heads import FILE as HEADS
from server.heads import Heads
from server.live import Live
from server.local_only import train_alone
from server.log import log
from server.model_card import model_card, write_model_card
from server.private_plan import budgets_are_spent, with_privacy
from server.production import Production, connected, leave_out_unfit, rejoined, with_newcomers
from server.publish import assemble, publish, write_pictures
from server.results import Results, RoundResult, SiteRound, unwritable
from server.rounds import Orders, check_federation, evaluate_everywhere, quorum_of, train_round

if TYPE_CHECKING:
    from server.grid import NetworkGrid

# Settings that may differ between the parts of a resumed run: none enters a training plan, and with data moved
# elsewhere the sites' fingerprints must still be the same.
_STOPS_S: Final = 30.0  # a ServerApp that was told to stop may take so long
_FREE = {"out", "resume", "title", "deadline_s", "cache", "pictures", "data", "quorum", "dp_accept"}
MODEL = "model.safetensors"
Licences = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Job:
    """What a run needs besides the grid."""

    config: RunConfig
    folder: Path
    key: Ed25519PrivateKey
    licences: Licences
    production: Production | None = None  # none in a simulation

    @property
    def runs(self) -> Path | None:
        """The folder of all runs of a federation."""
        return self.folder.parent if self.production else None

    @property
    def heads(self) -> Path:
        """The record of countersigned heads: of the federation, else of this run."""
        if self.production is not None:
            return self.production.heads
        return Path(self.config.heads) if self.config.heads else self.folder / HEADS


def config_sha256(config: RunConfig) -> str:
    """Return the hash of all settings that must not change between the parts of a run."""
    return sha256_text(canonical_json(config.model_copy(update={k: RunConfig.model_fields[k].default for k in _FREE})))


def run_job(grid: Grid, job: Job, *, after_round: Callable[[JobState], None] = lambda _state: None) -> Results:
    """Run or resume a job to its end and return the results; everything is in the run folder.

    Whatever stops it leaves a checkpoint to resume from, and results that say "stopped".

    Raises:
        InputError: the job cannot begin or go on; what was finished stays in the checkpoint. `run_in_use` where
            another process runs in the folder: two would sign the same rounds.
    """
    with ExitStack() as stack:
        _hold(job.folder, stack)
        return _run_alone(grid, job, after_round)


def _hold(folder: Path, stack: ExitStack) -> None:
    busy = InputError("run_in_use", f"Another process runs in {folder}. Stop it, or give another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, which a run that cannot begin does not make.
        stack.enter_context(held(folder.with_name(f".{folder.name}.lock"), wait_s=_STOPS_S, busy=busy))
    except OSError as error:
        raise unwritable(folder, error) from None


def _run_alone(grid: Grid, job: Job, after_round: Callable[[JobState], None]) -> Results:
    config, folder = job.config, job.folder
    resumed = _resumed(config, folder)
    post = Post(cast("NetworkGrid", grid), job.production.roster) if job.production else None
    with Live(folder, config, post) as live:
        federation = _present(grid, post, config, resumed)
        live.federation = federation
        check_federation(federation, config)
        if post is not None and resumed is None:
            leave_out_unfit(federation, config)
        state, weights = _continued(*resumed, federation, config) if resumed else _first(job, federation)
        check_federation(federation, config)
        return _run(job, live, federation, state, weights, after_round=after_round)


def _present(grid: Grid, post: Post | None, config: RunConfig, resumed: tuple[JobState, Weights] | None) -> Federation:
    if post is None:
        return describe(grid, at_least=config.quorum, deadline_s=config.deadline_s)
    return connected(grid, post, config, resumed[0] if resumed else None)


def _run(
    job: Job,
    live: Live,
    federation: Federation,
    state: JobState,
    weights: Weights,
    *,
    after_round: Callable[[JobState], None],
) -> Results:
    config, folder = job.config, job.folder
    state = with_privacy(config, state, weights)
    orders = Orders(
        job_id=state.job_id,
        config=config,
        key=job.key,
        mask_convention=state.mask_convention,
        mean_mask=federated_mean_mask(state.cards, state.mask_convention),
        privacy=state.privacy,
        heads=Heads(job.heads),
        site_level=state.site_level,
    )
    _announce(state, config, federation)
    write_checkpoint(folder, state, weights)
    try:
        orders, state, weights = _train(federation, orders, job, state, weights, live=live, after_round=after_round)
        live.begin("comparing" if config.compare_local else "scoring", state)
        state = _compare_local(federation, orders, job, state, weights)
        live.begin("scoring", state)
        return _finish(federation, orders, job, state, weights)
    except BaseException:
        _publish_stopped(job)
        raise


def _resumed(config: RunConfig, folder: Path) -> tuple[JobState, Weights] | None:
    """Return what the checkpoint holds where the run resumes, None for a new one in an unused folder."""
    if config.resume:
        return read_checkpoint(folder, config_sha256=config_sha256(config))
    if (folder / FILE).exists():
        raise RunConfigError(
            "out_in_use",
            f"{folder} already holds a run: continue it with resume = true, or choose another out.",
        )
    return None


def _first(job: Job, federation: Federation) -> tuple[JobState, Weights]:
    """Return the state of a new job: no round done, every site that described itself known."""
    config = job.config
    state = JobState(
        job_id=f"job-{secrets.token_hex(6)}",
        config_sha256=config_sha256(config),
        round=0,
        cards=federation.cards,
        mask_convention=choose_convention(federation.cards, config.mask_convention),
        started=datetime.now(UTC).isoformat(),
    )
    return state, initial_weights(config, runs=job.runs)


def initial_weights(config: RunConfig, *, runs: Path | None = None) -> Weights:
    """Return new weights, or those to start from; RunConfigError `start_from` where the model is of another shape.

    With `runs`, `start-from` is the name of a run among them, else a file.
    """
    network = config.method().network
    fresh = export(new_network(network, config.seed))
    if not config.start_from:
        return fresh
    given = export(load_model(runs / config.start_from / MODEL if runs else Path(config.start_from)))
    if {name: value.shape for name, value in given.items()} != {name: value.shape for name, value in fresh.items()}:
        raise RunConfigError(
            "start_from", f"{config.start_from} is a network of another shape: give one of this preset, row and width."
        )
    return given


def _continued(
    state: JobState, weights: Weights, federation: Federation, config: RunConfig
) -> tuple[JobState, Weights]:
    """Return the state with the cards shown now; a site that is away keeps its card and counts as absent.

    A simulation whose images changed is refused; of real sites the one that has other images is left out.
    """
    if federation.post is not None:
        return rejoined(federation, config, state, weights), weights
    for site, card in sorted(federation.cards.items()):
        if site not in state.cards:
            log.warning("  %s was not part of this job before", site)
        elif card.data_fingerprint != state.cards[site].data_fingerprint:
            raise CheckpointError(
                "checkpoint_of_another_job",
                f"{site} has other images than when this job began, so it cannot be resumed: bring the images back, or "
                "begin a new run with another out.",
            )
    return state.model_copy(update={"cards": {**state.cards, **federation.cards}}), weights


def _publish_stopped(job: Job) -> None:
    """Publish what the checkpoint holds; where that fails too, the first error is the one to tell."""
    try:
        state, _ = read_checkpoint(job.folder, config_sha256=config_sha256(job.config))
        publish(assemble(job.config, state, status="stopped", licences=job.licences), job.folder)
    except Exception as error:  # noqa: BLE001
        log.warning("the report of the stopped run was not written (%s)", type(error).__name__)


def _announce(state: JobState, config: RunConfig, federation: Federation) -> None:
    log.info("job %s: %d rounds of %d steps", state.job_id, config.rounds, config.local_steps)
    for site, card in sorted(federation.cards.items()):
        log.info(
            "  %-16s %-8s %5d images of %5d patients, mask convention %s",
            *(site, card.role, card.images, card.patients, ", ".join(card.conventions) or "none"),
        )
    log.info("masks are learned by convention: %s", state.mask_convention or "all")


def _train(
    federation: Federation,
    orders: Orders,
    job: Job,
    state: JobState,
    weights: Weights,
    *,
    live: Live,
    after_round: Callable[[JobState], None],
) -> tuple[Orders, JobState, Weights]:
    config, folder = job.config, job.folder
    for number in range(state.round + 1, config.rounds + 1 if not state.budget_spent else 0):
        orders, state = with_newcomers(federation, orders, state, weights)
        sites = sorted(site for site, card in state.cards.items() if card.role == "train")
        live.begin("training", state)
        outcome = train_round(federation, orders, weights, number, sites)
        if not outcome.quorum_met and budgets_are_spent(outcome.record):
            state = _with_round(state, outcome.record).model_copy(update={"budget_spent": True})
            write_checkpoint(folder, state, weights)
            log.info("round %d: the sites' privacy budgets are spent, the run ends here", number)
            break
        if not outcome.quorum_met:
            reasons = ", ".join(f"{s}: {r.reason}" for s, r in outcome.record.sites.items() if r.state != "accepted")
            raise InputError(
                "quorum",
                f"Round {number} had fewer than {quorum_of(config, len(sites))} accepted sites ({reasons}). The rounds "
                f"before it are in {folder}: mend the sites and run again with resume = true, or lower quorum.",
            )
        started = time.perf_counter()
        state = _with_round(state, outcome.record)
        write_checkpoint(folder, state, outcome.weights)
        saved = time.perf_counter()
        publish(assemble(config, state, status="running", licences=job.licences), folder)
        weights = outcome.weights
        state = _timed(state, checkpoint_s=saved - started, report_s=time.perf_counter() - saved)
        _progress(state, config)
        after_round(state)
    return orders, state, weights


def _with_round(state: JobState, record: RoundResult) -> JobState:
    return state.model_copy(
        update={
            "round": record.round,
            "rounds": (*state.rounds, record),
            "seconds": state.seconds + record.seconds,
        }
    )


def _timed(state: JobState, *, checkpoint_s: float, report_s: float) -> JobState:
    """Add what saving and reporting took to the last round's record."""
    last = state.rounds[-1]
    parts = {**last.parts, "checkpoint": checkpoint_s, "report": report_s}
    record = last.model_copy(update={"parts": parts, "seconds": last.seconds + checkpoint_s + report_s})
    return state.model_copy(
        update={"rounds": (*state.rounds[:-1], record), "seconds": state.seconds + checkpoint_s + report_s}
    )


def _progress(state: JobState, config: RunConfig) -> None:
    last = state.rounds[-1]
    accepted = [site for site in last.sites.values() if site.state == "accepted"]
    left = (config.rounds - state.round) * state.seconds / max(1, len(state.rounds))
    log.info(
        "round %d/%d  %d of %d sites  %s%.0f s, about %.0f s left",
        *(state.round, config.rounds, len(accepted), len(last.sites)),
        *(_figures(accepted) if config.dp == "none" else "", last.seconds, left),
    )
    for name, site in sorted(last.sites.items()):
        if site.state != "accepted":
            log.warning("  %s %s: %s", name, site.state, site.reason)


def _figures(accepted: list[SiteRound]) -> str:
    loss, dice, auroc = (
        _mean([getattr(site, kind).get(key) for site in accepted])
        for kind, key in (("losses", "total"), ("metrics", "dice"), ("metrics", "auroc"))
    )
    validation = f"Dice {_shown(dice)} AUROC {_shown(auroc)}"
    return f"loss {_shown(loss)}  validation of the weights received: {validation}  "


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _compare_local(federation: Federation, orders: Orders, job: Job, state: JobState, weights: Weights) -> JobState:
    if not job.config.compare_local or state.local_only:
        return state
    local_only = train_alone(
        federation, orders, initial_weights(job.config, runs=job.runs), federation.training_sites()
    )
    state = state.model_copy(update={"local_only": local_only})
    write_checkpoint(job.folder, state, weights)
    return state


def _finish(federation: Federation, orders: Orders, job: Job, state: JobState, weights: Weights) -> Results:
    """Score the final model everywhere and write what remains of a run."""
    log.info("scoring the final model at %d sites", len(federation.cards))
    scores = evaluate_everywhere(
        federation, orders, dict.fromkeys(sorted(federation.cards), weights), pictures=job.config.pictures
    )
    for site, reason in scores.refused.items():
        log.warning("  %s gave no figures: %s", site, reason)
    pictures = write_pictures(job.folder, scores)
    results = assemble(job.config, state, status="finished", scores=scores, pictures=pictures, licences=job.licences)
    _save_model(job, weights)
    parameters = sum(value.size for value in weights.values())
    every_licence = tuple(sorted({licence for names in job.licences.values() for licence in names}))
    write_model_card(model_card(results, parameters=parameters, data_licences=every_licence), job.folder)
    publish(results, job.folder)
    return results


def _save_model(job: Job, weights: Weights) -> None:
    path = job.folder / MODEL
    try:
        save_model(path, weights, job.config.method().network, fit=job.config.fit)
    except OSError as error:
        raise unwritable(path, error) from error
