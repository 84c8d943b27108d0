"""The DP statement: what a site's training has told about a patient, for one run or for the site's lifetime.

Built from the ledger's entries alone. It prices their history itself and says so where the ledger's own figures
differ; it does not check the entries' signatures, which the ledger does when it is opened. An epsilon that no noise
stands behind is the word "infinity", never blank. multimix/privacy/statement_page.py renders it.
"""

from collections.abc import Iterable, Sequence

from multimix.contract.privacy import Countersignature, LedgerHead
from multimix.contract.signing import public_key
from multimix.errors import SiteError
from multimix.privacy import statement_words as words
from multimix.privacy.entries import Entry, Evaluation, Genesis, NonPrivate, Officer, Refusal, Reservation, Tuning
from multimix.privacy.history import mechanism_of, spent_runs
from multimix.privacy.statement_accounts import Prices, Pricing, account_of, by_run, notices_of, run_account
from multimix.privacy.statement_records import LedgerFacts, Provenance, Statement, Terms, Use

__all__ = ["Statement", "build_statement"]


def build_statement(
    entries: Sequence[Entry],
    *,
    head: LedgerHead,
    countersignature: Countersignature | None,
    declared_patients: int,
    images_per_patient: int,
    delta: float,
    delta_reason: str,
    limit_run: float,
    limit_lifetime: float,
    job_id: str | None = None,
    forecast_rounds: int | None,
    accountant_versions: dict[str, str],
    price: Pricing,
    coordinator_key: str | None = None,
) -> Statement:
    """Return the statement of a run, or of the lifetime where no run is named.

    Args:
        entries: All of the ledger, from its genesis on.
        head: Of the ledger after the last entry.
        countersignature: The newest that the coordinator gave; of this head or of an earlier one.
        declared_patients: N.
        images_per_patient: The most of a patient's images in one step.
        delta: At which all prices are stated.
        delta_reason: Why this delta, in a sentence.
        limit_run: The most epsilon of one run.
        limit_lifetime: The most epsilon of all runs together.
        job_id: The run.
        forecast_rounds: Rounds of the kind used last that still fit; None where none can be said.
        accountant_versions: By name of the accountant.
        price: The larger of both accountants for steps by mechanism, at a delta.
        coordinator_key: Public, base64; checks the countersignature and is printed beside it.

    Raises:
        SiteError: the entries are not the whole ledger, the countersignature is of another ledger, or no entry
            mentions the run.
        Refused: by `price`; an epsilon too large for it is stated as infinity.
    """
    genesis = _whole(entries, head)
    since = _entries_since(entries, head, genesis, countersignature, coordinator_key)
    entries_of = by_run(entries)
    if job_id is not None and job_id not in entries_of:
        raise SiteError("run_unknown", "no entry of the ledger mentions this run")
    scoped = entries if job_id is None else entries_of[job_id]
    prices = Prices(price, delta)
    lifetime = account_of(entries, prices, limit_lifetime)
    runs = tuple(run_account(job, entries_of[job], prices, limit_run) for job in spent_runs(scoped))
    run = None if job_id is None else account_of(scoped, prices, limit_run)
    return Statement(
        scope="lifetime" if job_id is None else "run",
        job_id=job_id,
        site=genesis.site,
        population=genesis.population,
        as_of=entries[-1].time,
        notices=notices_of(entries, lifetime, runs, prices, declared_patients),
        terms=_terms(job_id),
        declared_patients=declared_patients,
        images_per_patient=images_per_patient,
        delta=delta,
        delta_reason=delta_reason,
        lifetime=lifetime,
        run=run,
        runs=runs,
        forecast_rounds=forecast_rounds,
        uses=_uses(scoped),
        accountant_versions=accountant_versions,
        released=_released(scoped),
        not_covered=words.NOT_COVERED,
        provenance=_provenance(scoped),
        refusals=_kept(scoped, Refusal),
        evaluations=_kept(scoped, Evaluation),
        officer=_kept(entries, Officer),
        tuning=_kept(entries, Tuning),
        ledger=LedgerFacts(
            public_key=genesis.public_key,
            head=head,
            countersignature=countersignature,
            coordinator_key=coordinator_key,
            entries_since=since,
        ),
    )


def _whole(entries: Sequence[Entry], head: LedgerHead) -> Genesis:
    numbered = all(entry.sequence == number for number, entry in enumerate(entries))
    body = entries[0].body if entries else None
    if not isinstance(body, Genesis) or not numbered or head.length != len(entries):
        raise SiteError("ledger_incomplete", "a statement needs the whole ledger, from its first entry to its head")
    return body


def _entries_since(
    entries: Sequence[Entry],
    head: LedgerHead,
    genesis: Genesis,
    countersignature: Countersignature | None,
    coordinator_key: str | None,
) -> int | None:
    if countersignature is None:
        return None
    seen = countersignature.head
    heads = [entry.previous for entry in entries] + [head.sha256]
    ours = (countersignature.site, countersignature.public_key) == (genesis.site, genesis.public_key)
    if not ours or seen.length >= len(heads) or heads[seen.length] != seen.sha256:
        raise SiteError("countersignature_of_another_ledger", "the coordinator has countersigned another ledger")
    if coordinator_key is not None and not countersignature.by(public_key(coordinator_key)):
        raise SiteError("countersignature_invalid", "the countersignature is not by the coordinator's key")
    return head.length - seen.length


def _terms(job_id: str | None) -> Terms:
    return Terms(
        setting=words.SETTING,
        unit=words.UNIT,
        adjacency=words.ADJACENCY,
        trust_model=words.TRUST,
        accesses=words.ACCESSES if job_id is None else words.RUN_ACCESSES,
        output=words.OUTPUT,
        mechanism=words.MECHANISM,
        sampler=words.SAMPLER,
        accounting=words.ACCOUNTING,
        reservations=words.RESERVED,
    )


def _released(entries: Sequence[Entry]) -> tuple[str, ...]:
    bodies = [entry.body for entry in entries]
    modules = _distinct(module for body in bodies if isinstance(body, Reservation) for module in body.dp.modules)
    released = [words.RELEASED_HEAD]
    if modules:
        released.insert(0, f"Noised weights of modules: {', '.join(modules)}. {words.FROZEN}")
    if any(isinstance(body, NonPrivate) for body in bodies):
        released.append(words.RELEASED_NON_PRIVATE)
    if any(isinstance(body, Evaluation) for body in bodies):
        released.append(words.RELEASED_EVALUATIONS)
    return tuple(released)


def _uses(entries: Iterable[Entry]) -> tuple[Use, ...]:
    """Return the mechanisms with their steps, in the order of first use."""
    uses: dict[Use, int] = {}
    for entry in entries:
        if isinstance(body := entry.body, Reservation):
            use = _use(body)
            uses[use] = uses.get(use, 0) + body.steps
    return tuple(use.model_copy(update={"steps": steps}) for use, steps in uses.items())


def _use(body: Reservation) -> Use:
    mechanism = mechanism_of(body)
    return Use(
        noise_multiplier=mechanism.noise_multiplier,
        clip_norm=body.dp.clip_norm,
        sampling_rate=mechanism.sampling_rate,
        declared_patients=body.dp.declared_patients,
        images_per_patient=body.dp.images_per_patient,
        modules=body.dp.modules,
        parameters=body.dp.parameters,
        steps=0,
    )


def _provenance(entries: Sequence[Entry]) -> Provenance:
    reserved = [entry.body for entry in entries if isinstance(entry.body, Reservation)]
    bound = [entry.body for entry in entries if isinstance(entry.body, Reservation | NonPrivate | Evaluation)]
    return Provenance(
        data_fingerprints=_distinct(body.binding.data_fingerprint for body in bound),
        random_generators=_distinct(words.SEEDED_GENERATOR if body.seeded else words.GENERATOR for body in reserved),
        code=_distinct(body.code for body in reserved),
        method_sha256=_distinct(body.method_sha256 for body in reserved),
        plan_sha256=_distinct(body.binding.plan_sha256 for body in bound),
    )


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _kept(entries: Iterable[Entry], kind: type[Refusal | Evaluation | Officer | Tuning]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if isinstance(entry.body, kind))
