"""Do the entries of a ledger follow the rules by which the trainer writes them? What it never writes is a violation.

The rules are those of `multimix.privacy.reservations` and `client.books`: one answer for one question, a secret for
each reservation, rounds that go forward, a plan that is bound to one job, round and weights.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from multimix.audit.verification.findings import Finding, notice, violation
from multimix.privacy.entries import Binding, Commit, Entry, Evaluation, NonPrivate, Reservation


@dataclass
class _Answers:
    """Reservations and their commits, by number."""

    reserved: dict[int, Reservation] = field(default_factory=dict)
    commits: dict[int, int] = field(default_factory=dict)  # reservation: its commit
    answered: dict[tuple[str, str], int] = field(default_factory=dict)  # plan and weights: the reservation
    asked: dict[tuple[object, ...], int] = field(default_factory=dict)  # everything an order consists of: the same

    def reserve(self, number: int, body: Reservation) -> Iterator[Finding]:
        self.reserved[number] = body
        answered = self.answered.get(_question(body.binding))
        if answered is not None:
            yield violation("reserved_after_answer", number, f"this plan on these weights was answered from {answered}")
        earlier = self.asked.setdefault((body.binding, body.dp.model_dump_json(), body.steps), number)
        if earlier != number:
            yield violation("reserved_twice", number, f"the same order was reserved in entry {earlier}")

    def commit(self, number: int, body: Commit) -> Iterator[Finding]:
        reservation = self.reserved.get(body.reservation)
        if reservation is None:
            yield violation("commit_unknown", number, f"entry {body.reservation} is no reservation before this")
            return
        earlier = self.commits.setdefault(body.reservation, number)
        if earlier != number:
            yield violation("commit_again", number, f"reservation {body.reservation} was answered in entry {earlier}")
            return
        answered = self.answered.setdefault(_question(reservation.binding), body.reservation)
        if answered != body.reservation:
            text = f"reservations {answered} and {body.reservation} both answered one plan on the same weights"
            yield violation("answered_twice", number, text)


def answer_findings(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield commits that do not fit a reservation, second answers, and reservations that were never answered."""
    answers = _Answers()
    for entry in entries:
        if isinstance(entry.body, Reservation):
            yield from answers.reserve(entry.sequence, entry.body)
        elif isinstance(entry.body, Commit):
            yield from answers.commit(entry.sequence, entry.body)
    still = [number for number in answers.reserved if number not in answers.commits]
    if still:
        yield notice("uncommitted", still[0], f"{len(still)} reservations were never answered; they stay spent")


def open_reservations(entries: Iterable[Entry]) -> tuple[int, ...]:
    """Return the numbers of the reservations without a commit."""
    reserved: dict[int, None] = {}
    for entry in entries:
        if isinstance(entry.body, Reservation):
            reserved[entry.sequence] = None
        elif isinstance(entry.body, Commit):
            reserved.pop(entry.body.reservation, None)
    return tuple(reserved)


def secret_findings(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield noise that was used twice (its difference shows the patients), or drawn from a known seed."""
    owners: dict[str, tuple[int, bool]] = {}
    seeded = []
    for entry in entries:
        body = entry.body
        if not isinstance(body, Reservation):
            continue
        number, was_seeded = owners.setdefault(body.commitment, (entry.sequence, body.seeded))
        if number != entry.sequence and not (was_seeded and body.seeded):
            yield violation("secret_reused", entry.sequence, f"the same secret, so the same noise, as entry {number}")
        if body.seeded:
            seeded.append(entry.sequence)
    if seeded:
        text = f"{len(seeded)} reservations drew noise from a known seed: a simulation, which protects nobody"
        yield notice("seeded", seeded[0], text)


def round_findings(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield training for an older round after a newer one, and a second plan for a round."""
    last: dict[str, Binding] = {}
    for entry in entries:
        if not isinstance(entry.body, Reservation | NonPrivate):
            continue
        binding = entry.body.binding
        before = last.setdefault(binding.job_id, binding)
        if binding.round < before.round:
            yield violation("round_back", entry.sequence, f"round {binding.round} after round {before.round}")
            continue
        if binding.round == before.round and binding.plan_sha256 != before.plan_sha256:
            yield violation("plan_changed", entry.sequence, f"another plan for round {binding.round}")
        last[binding.job_id] = binding


def plan_findings(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Yield plans that stand with two jobs, rounds or weights: the hash of a plan is over all of these."""
    bound: dict[str, tuple[int, tuple[str, int, str]]] = {}
    for entry in entries:
        if not isinstance(entry.body, Reservation | NonPrivate | Evaluation):
            continue
        binding = entry.body.binding
        facts = (binding.job_id, binding.round, binding.weights_sha256)
        number, earlier = bound.setdefault(binding.plan_sha256, (entry.sequence, facts))
        if facts != earlier:
            text = f"a plan has one job, one round and one weights: entry {number} names others for this one"
            yield violation("plan_bound_otherwise", entry.sequence, text)


def _question(binding: Binding) -> tuple[str, str]:
    return binding.plan_sha256, binding.weights_sha256
