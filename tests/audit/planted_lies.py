"""Broken trainers and crooked books, planted so that the audit has something to find.

A lie is told while its context is open: some names inside the real software stand for something else, and all around
them is the real DP code.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

import client.books
import client.site
from client.books import Books
from multimix import saliency
from multimix.objective import Batch
from multimix.privacy import dp_sgd, training
from multimix.privacy.accountant import Mechanism
from multimix.privacy.canaries import AUDIT_HEAD
from multimix.privacy.noise import SecretStream, commitment
from multimix.privacy.reservations import Reservations
from multimix.privacy.training import Population

TRUE_NOISED, TRUE_STEP_SUM, TRUE_TARGETS = dp_sgd.noised, dp_sgd.step_sum, dp_sgd.targets
TRUE_SAMPLE, TRUE_GRADIENT = Population.sample, training._Draws.gradient
TRUE_TRAIN, TRUE_REPORT = client.site.train_privately, client.site.private_report
TRUE_RESERVATION = Books._reservation
NO_BOUND = 1e30  # of a gradient's norm
OLD_SECRET = b"o" * 32


@dataclass(frozen=True)
class Lie:
    name: str
    told: Callable[[], AbstractContextManager[None]]
    wide: bool = False  # it needs a network with decoder and saliency
    of_books: bool = False  # it leaves the trainer alone: nothing for an empirical audit


@contextmanager
def swapped(*swaps: tuple[object, str, object]) -> Iterator[None]:
    """Let names stand for something else for a while."""
    with ExitStack() as stack:
        for owner, name, lie in swaps:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, lie)
        yield


# --- noise


def times(factor: float) -> Callable:
    """Noise of so many times the standard deviation."""

    def noised(total, normals, *, noise_multiplier, **given):
        return TRUE_NOISED(total, normals, noise_multiplier=factor * noise_multiplier, **given)

    return noised


@contextmanager
def divided_by_the_batch() -> Iterator[None]:
    """As if noise were added to a mean, whose sensitivity is that of the sum over the batch."""
    counted = [1]

    def step_sum(step, patients, clip_norm):
        held = [list(batches) for batches in patients]
        counted[0] = max(1, len(held))
        return TRUE_STEP_SUM(step, held, clip_norm)

    def noised(*given, **named):
        return times(1 / counted[0])(*given, **named)

    with swapped((training, "step_sum", step_sum), (training, "noised", noised)):
        yield


class SameEveryStep(SecretStream):
    def normals(self, purpose, step, count):
        return super().normals(purpose, 0, count)


class EverySecondStep(SecretStream):
    def normals(self, purpose, step, count):
        return super().normals(purpose, step, count) * (step % 2 == 0)


class Cancelling(SecretStream):
    """Each step is as noisy as it should be; what a round moves in the end is not."""

    def normals(self, purpose, step, count):
        return super().normals(purpose, step - step % 2, count) * (1 - 2 * (step % 2))


class HalfTheCoordinates(SecretStream):
    def normals(self, purpose, step, count):
        return super().normals(purpose, step, count) * (np.arange(count) % 2)


class Tiled(SecretStream):
    """Of 16 numbers, on every parameter over and over."""

    def normals(self, purpose, step, count):
        return np.resize(super().normals(purpose, step, 16), count)


def same_for_every_parameter(total, normals, *, noise_multiplier, clip_norm, divisor):
    """As if each parameter were given a generator of its own with the same seed."""
    noise = normals(max(value.numel() for value in total.values())) * (noise_multiplier * clip_norm)
    return {name: (value + noise[: value.numel()].view(value.shape)) / divisor for name, value in total.items()}


def fresh_on_the_audit_head(total, normals, **given):
    """Each step's own noise where the auditor's canaries are, and the same in every step on all that is released."""
    stream = SecretStream(OLD_SECRET)
    fresh = TRUE_NOISED(total, normals, **given)
    again = TRUE_NOISED(total, lambda count: torch.from_numpy(stream.normals("noise", 0, count)), **given)
    return {name: (fresh if name == AUDIT_HEAD else again)[name] for name in total}


def on_the_audit_head(total, normals, **given):
    """Noise where the auditor's canaries are, and nowhere else."""
    noisy, silent = TRUE_NOISED(total, normals, **given), times(0)(total, normals, **given)
    return {name: (noisy if name == AUDIT_HEAD else silent)[name] for name in total}


def noise_while_watched(*given, watch=None, **named):
    with nullcontext() if watch else swapped((training, "noised", times(0))):
        return TRUE_TRAIN(*given, watch=watch, **named)


# --- clipping and sampling


def unclipped(step, patients, clip_norm):
    return TRUE_STEP_SUM(step, patients, NO_BOUND)


def images_as_patients(self, stream, step, **given):
    return [row[None] for rows in TRUE_SAMPLE(self, stream, step, **given) for row in rows]


def at_twice_the_rate(self, stream, step, *, rate, **given):
    return TRUE_SAMPLE(self, stream, step, rate=min(1.0, 2 * rate), **given)


@dataclass(frozen=True)
class Cycled:
    """The labelled patients in turn, as many a step as union sampling takes on average."""

    draws: training._Draws

    def sample(self, stream, step, *, rate, images_per_patient):
        rows = self.draws.data.pools.labelled_classification
        of_row = self.draws.data.store.patient[rows]
        patients, size = np.unique(of_row), max(1, round(rate * self.draws.population.count))
        turn = np.arange(step * size, (step + 1) * size) % max(1, len(patients))
        return [rows[of_row == patients[each]][:images_per_patient] for each in np.unique(turn) if len(patients)]


def cycled_gradient(self, step, index, number):
    return TRUE_GRADIENT(replace(self, population=Cycled(self)), step, index, number)


# --- patients mixed, although every gradient is computed of one patient alone


def labelled_above_the_mean(step, patients, clip_norm):
    """Take the step's mean confidence for the threshold of pseudo-labels, near what FreeMatch does (arXiv:2205.07246)."""
    held = [list(batches) for batches in patients]
    found = [_confidence(step.teacher, batch) for batches in held for batch in batches if isinstance(batch, Batch)]
    mean = torch.cat([*found, torch.zeros(0)]).double().mean()

    def targets(student, teacher, batch, objective):
        confident = (_confidence(teacher, batch).double() >= mean) & batch.teaches_classifier
        return replace(TRUE_TARGETS(student, teacher, batch, objective), confident=confident.float())

    with swapped((dp_sgd, "targets", targets)):
        return TRUE_STEP_SUM(step, held, clip_norm)


def _confidence(teacher, batch):
    if not len(batch.weak):
        return torch.zeros(0)
    with torch.no_grad():
        return teacher.classify(teacher.encode(batch.weak)).softmax(dim=1).amax(dim=1)


def saliency_of_the_step(step, patients, clip_norm):
    """Scale saliency by its maximum over the patients of the step."""
    held = [list(batches) for batches in patients]
    tops = [1e-12]

    def record(gradient, _scale):
        tops.append(float(gradient.max()) if gradient.numel() else 0.0)
        return gradient

    with swapped((saliency, "_scaled", record)):
        for batch in (batch for batches in held for batch in batches if isinstance(batch, Batch)):
            TRUE_TARGETS(step.student, step.teacher, batch, step.objective)
    with swapped((saliency, "_scaled", lambda gradient, _scale: gradient / max(tops))):
        return TRUE_STEP_SUM(step, held, clip_norm)


# --- books


def entered_at_half_the_rate(self, entries, order, hashed):
    """Everything in the entry fits, price included; only the training was another."""
    plan = order.plan
    dp = plan.dp.model_copy(update={"sampling_rate": plan.dp.sampling_rate / 2})
    return TRUE_RESERVATION(self, entries, replace(order, plan=plan.model_copy(update={"dp": dp})), hashed)


def priced_at_half_the_rate(dp):
    return Mechanism(noise_multiplier=dp.noise_multiplier, sampling_rate=dp.sampling_rate / 2)


def one_secret_for_all(self, ledger, body, secret=None):
    reservation = body(commitment(OLD_SECRET))
    self._keep_secret(reservation, OLD_SECRET)
    return ledger.append(reservation), OLD_SECRET


def old_noise_under_a_new_commitment(self, ledger, body, secret=None):
    fresh = commitment(str(len(ledger.entries)).encode()).encode()[:32]
    reservation = body(commitment(fresh))
    self._keep_secret(reservation, fresh)
    return ledger.append(reservation), OLD_SECRET


def with_metrics(*given):
    return TRUE_REPORT(*given).model_copy(update={"losses": {"classification": 0.41}, "pseudo_label_rate": 0.625})


def lie(name: str, *swaps: tuple[object, str, object], wide: bool = False, of_books: bool = False) -> Lie:
    return Lie(name, lambda: swapped(*swaps), wide, of_books)


LIES = (
    lie("no noise", (training, "noised", times(0))),
    lie("half noise", (training, "noised", times(0.5))),
    Lie("noise divided by the batch", divided_by_the_batch),
    lie("same noise every step", (training, "SecretStream", SameEveryStep)),
    lie("no clipping", (training, "step_sum", unclipped)),
    lie("clipping per image instead of per patient", (Population, "sample", images_as_patients)),
    lie("labelled pool cycled instead of union sampling", (training._Draws, "gradient", cycled_gradient)),
    lie("sampling at twice the declared rate", (Population, "sample", at_twice_the_rate)),
    lie("ledger entry with half the rate trained at", (Books, "_reservation", entered_at_half_the_rate), of_books=True),
    lie("ledger entry priced at half its rate", (client.books, "mechanism_of", priced_at_half_the_rate), of_books=True),
    lie("secret reused for two reservations", (Reservations, "reserve", one_secret_for_all), of_books=True),
    lie("pseudo-labels by the step's mean confidence", (training, "step_sum", labelled_above_the_mean)),
    lie("saliency scaled over the step's patients", (training, "step_sum", saliency_of_the_step), wide=True),
    lie("metrics released and not ledgered", (client.site, "private_report", with_metrics), of_books=True),
    lie("noise on half of the coordinates", (training, "SecretStream", HalfTheCoordinates)),
    lie("noise in every second step", (training, "SecretStream", EverySecondStep)),
    lie("noise that the next step takes back", (training, "SecretStream", Cancelling)),
    lie("noise on the audit head only", (training, "noised", on_the_audit_head)),
    lie("the same noise for every parameter", (training, "noised", same_for_every_parameter)),
    lie("16 numbers as noise, over and over", (training, "SecretStream", Tiled)),
    lie("same noise every step but on the audit head", (training, "noised", fresh_on_the_audit_head)),
    lie("noise only while an audit watches", (client.site, "train_privately", noise_while_watched)),
    lie("old noise under a new commitment", (Reservations, "reserve", old_noise_under_a_new_commitment)),
)
HONEST = Lie("none: the software as it is", nullcontext)
