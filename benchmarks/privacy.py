"""What patient privacy costs: a private step beside the same step without, its memory, its exactness, its books.

Both steps get the same pixels, whose values do not matter for time: eight patients of one image at a site that has
every label and every other mask. The images without a mask teach by consistency, so saliency, teacher and both tasks
are in it. A process of its own measures each peak of memory, and the pricing, whose accountants then have nothing
cached; imports are not counted.
"""

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from client.books import Books
from client.population import PopulationSettings
from multimix.batches import TrainingData, make_batch, roles_of, slots
from multimix.config import MethodConfig, preset
from multimix.contract.messages import LocalWork
from multimix.contract.privacy import PatientPrivacy, chained
from multimix.contract.run_config import RunConfig
from multimix.data.simulation import simulated_hospitals
from multimix.network import Dropout, MultiMixNetwork, new_network
from multimix.objective import Batch
from multimix.privacy import ledger
from multimix.privacy.accountant import Mechanism, default_delta, price
from multimix.privacy.chain import seal
from multimix.privacy.dp_sgd import ONE_EACH, Named, PrivateStep, noised, step_sum
from multimix.privacy.entries import Binding, Body, Commit, Entry, Reservation
from multimix.privacy.noise import SecretStream
from multimix.privacy.training import train_privately
from multimix.training import step_gradients

SIZE, WIDTH = 128, 16
PATIENTS = 8  # of the step that is timed
LOT = 64  # patients of the step whose memory is measured
LEDGER_ENTRIES, JOBS, STEPS = 10_000, 20, 10  # steps of a round
MECHANISMS = tuple(Mechanism(noise, 0.0051) for noise in (0.9, 1.0, 1.1, 1.2, 1.5))
# DESIGN.md, "epsilon to expect": patients and sampling rate, at so many epochs
EPSILON_TABLE = ((500, 0.064), (5_000, 0.0128), (50_000, 0.0051))
EPOCHS = (10, 50, 200)
_SECRET, _STARTED = b"benchmark".ljust(32), datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """One step: each patient's images, all of them in one batch, and the number of each image's patient."""

    method: MethodConfig
    step: PrivateStep
    alone: tuple[Batch, ...]
    batch: Batch
    patient: Tensor


def case(method: MethodConfig, *, patients: int, images: int, dtype: torch.dtype = torch.float32) -> Case:
    """Make a step: of each patient so many images have a label and as many a mask, or teach by consistency."""
    student, teacher = (new_network(method.network, seed).to(dtype) for seed in (0, 1))
    alone = tuple(_images_of(number, method, images, dtype) for number in range(patients))
    counts = [[len(getattr(batch, role)) for batch in alone] for role in ("labelled", "weak", "masked")]
    patient = torch.cat([torch.arange(patients).repeat_interleave(torch.tensor(count)) for count in counts])
    step = PrivateStep(student, teacher, method.objective, tuple(dict(student.named_parameters())))
    return Case(method, step, alone, _joined(alone, counts), patient)


def _images_of(number: int, method: MethodConfig, count: int, dtype: torch.dtype) -> Batch:
    generator, size = torch.Generator().manual_seed(number), method.network.image_size

    def images(wanted: int) -> Tensor:
        return torch.rand(wanted, 1, size, size, generator=generator, dtype=dtype)

    masked, unlabelled = (count, 0) if number % 2 else (0, count)
    return Batch(
        labelled=images(count),
        labels=torch.arange(number, number + count) % 2,
        masked=images(masked),
        masks=(images(masked) > 0.5).to(dtype),
        weak=images(unlabelled),
        strong=images(unlabelled),
        teaches_classifier=torch.zeros(unlabelled, dtype=torch.bool),
        teaches_decoder=torch.ones(unlabelled, dtype=torch.bool),
        log_prior=torch.zeros(2, dtype=dtype),
        dropout_seeds=tuple(range(1000 * number, 1000 * number + 2 * count)),
    )


def _joined(alone: tuple[Batch, ...], counts: list[list[int]]) -> Batch:
    """Return all patients' images role by role; the order of the dropout seeds follows that of the images."""
    seeds = [list(batch.dropout_seeds) for batch in alone]
    in_order = [seeds[i].pop(0) for role in counts for i, count in enumerate(role) for _ in range(count)]
    names = ("labelled", "labels", "masked", "masks", "weak", "strong", "teaches_classifier", "teaches_decoder")
    tensors = {name: torch.cat([getattr(batch, name) for batch in alone]) for name in names}
    return Batch(**tensors, log_prior=alone[0].log_prior, dropout_seeds=tuple(in_order))


def private_step(of: Case, optimiser: torch.optim.Optimizer, number: int) -> None:
    """Take a whole private step as training does."""
    gradient = noised(
        step_sum(of.step, [[batch] for batch in of.alone], 1.0),
        partial(_normals, SecretStream(_SECRET), number),
        noise_multiplier=1.0,
        clip_norm=1.0,
        divisor=float(PATIENTS),
    )
    named = dict(of.step.student.named_parameters())
    for name in of.step.trainable:
        named[name].grad = gradient[name].to(named[name].dtype)
    optimiser.step()


def open_step(of: Case, optimiser: torch.optim.Optimizer) -> None:
    """Take the step without privacy on the same images."""
    optimiser.zero_grad(set_to_none=True)
    objective = of.method.objective
    dropout = Dropout(of.batch.dropout_seeds, objective.dropout, objective.dropout_kind)
    planned = slots(of.method, PATIENTS)
    step_gradients(of.step.student, of.step.teacher, of.batch, planned, objective, dropout=dropout)
    optimiser.step()


def step_ratio(*, pairs: int = 11) -> float:
    """Return private over open in CPU time: the median over interleaved pairs, on one thread."""
    torch.set_num_threads(1)
    of = case(preset("modern", image_size=SIZE, width=WIDTH), patients=PATIENTS, images=1)
    optimiser = torch.optim.AdamW(of.step.student.parameters(), lr=1e-5)
    private_step(of, optimiser, 0)
    open_step(of, optimiser)
    pairs_s = [
        (_cpu_s(partial(open_step, of, optimiser)), _cpu_s(partial(private_step, of, optimiser, number)))
        for number in range(1, pairs + 1)
    ]
    return statistics.median(private / without for without, private in pairs_s)


def _normals(stream: SecretStream, step: int, count: int) -> Tensor:
    return torch.from_numpy(stream.normals("noise", step, count))


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def one_patient_at_a_time(step: PrivateStep, alone: Iterable[Batch], clip_norm: float) -> Named:
    """Return the clipped sum by the ordinary step of each patient: brute force, what the sum must equal."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in step.learning.items()}
    for batch in alone:
        step.student.zero_grad(set_to_none=True)
        dropout = Dropout(batch.dropout_seeds, step.objective.dropout, step.objective.dropout_kind)
        step_gradients(step.student, step.teacher, batch, ONE_EACH, step.objective, ramp=step.ramp, dropout=dropout)
        mine = {name: value.grad.double() for name, value in step.learning.items() if value.grad is not None}
        norm = sum(float(value.square().sum()) for value in mine.values()) ** 0.5
        for name, value in mine.items():
            total[name] += value * min(1.0, clip_norm / max(norm, 1e-300))
    step.student.zero_grad(set_to_none=True)
    return total


def clipped_sum_difference() -> float:
    """Return how far the sum is from one patient at a time, in float64 and in units of the clip norm, 1.

    Three images a patient, through saliency, bridge, dropout and a teacher of its own; every pseudo-label counts.
    """
    method = preset("modern", image_size=64, width=4)
    objective = method.objective.model_copy(update={"confidence_threshold": 0.0})
    of = case(method.model_copy(update={"objective": objective}), patients=6, images=3, dtype=torch.float64)
    fast = step_sum(of.step, [[batch] for batch in of.alone], 1.0)
    slow = one_patient_at_a_time(of.step, of.alone, 1.0)
    return max(float((fast[name] - slow[name]).abs().max()) for name in fast)


def noise_std_error(*, draws: int = 1_000_000) -> float:
    """Return how far the standard deviation of the noise on so many coordinates is from sigma C, relatively."""
    sigma, clip_norm, stream = 1.3, 0.7, SecretStream(_SECRET)
    noise = noised(
        {"all": torch.zeros(draws, dtype=torch.float64)},
        partial(_normals, stream, 0),
        noise_multiplier=sigma,
        clip_norm=clip_norm,
        divisor=1.0,
    )["all"]
    return abs(float(noise.std()) / (sigma * clip_norm) - 1)


def noise_2m_s() -> float:
    """Return the seconds for two million normals: the smallest of five."""
    return min(_cpu_s(partial(_normals, SecretStream(_SECRET), step, 2_000_000)) for step in range(5))


def accountant_difference() -> float:
    """Return the largest difference between the two accountants over DESIGN.md's table of epsilons."""
    prices = [
        price({Mechanism(1.0, rate): round(epochs / rate)}, delta=default_delta(patients))
        for patients, rate in EPSILON_TABLE
        for epochs in EPOCHS
    ]
    return max(each.difference for each in prices)


def memory_ratio() -> float:
    """Return the peak memory of a private step over that of an open one on the same 64 patients, above the start."""
    with tempfile.TemporaryDirectory() as folder:
        _lot(Path(folder))  # drawn and decoded here, so that neither process does
        private, without = (_alone(f"memory-{kind}", folder) for kind in ("private", "open"))
    return private / without


def pricing_s() -> float:
    """Return the seconds to open a ledger of 10,000 entries and to price a further round: the smallest of three."""
    with tempfile.TemporaryDirectory() as folder:
        write_ledger(Path(folder))
        return min(_alone("price", folder) for _ in range(3))


def _alone(task: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.privacy", task, folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _lot(cache: Path) -> TrainingData:
    """Return 64 patients of a phantom hospital, half with a mask."""
    config = RunConfig(
        phantom_hospitals=1, phantom_patients=2 * LOT, image_size=SIZE, masks=str(LOT // 2), cache=str(cache)
    )
    hospital = simulated_hospitals(config, nodes=1)[0]
    store = hospital.store()
    rows = hospital.evaluation_rows(store, "train")
    lot = rows[np.isin(store.patient[rows], np.unique(store.patient[rows])[:LOT])]
    return TrainingData(hospital.name, store, replace(hospital, rows=lot).pools(store))


def _memory(kind: str, cache: Path) -> float:
    """Return by how many bytes one step raises the peak of this process."""
    torch.set_num_threads(1)
    data, method = _lot(cache), preset("modern", image_size=SIZE, width=WIDTH)
    network = new_network(method.network, 0)
    before = _peak_bytes()
    if kind == "private":
        work = LocalWork(steps=1, images_per_group=1)
        everybody = _privacy(Mechanism(1.0, 1.0), patients=LOT)
        train_privately(network, data, method, work, everybody, secret=_SECRET)
    else:
        _open_lot(network, data, method)
    return _peak_bytes() - before


def _open_lot(network: MultiMixNetwork, data: TrainingData, method: MethodConfig) -> None:
    rows = np.union1d(data.pools.labelled_classification, data.pools.unlabelled_classification)
    batch = make_batch(data, roles_of(rows, data.pools, method), method, seed="0", step=0, device=torch.device("cpu"))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    step = PrivateStep(network, copy.deepcopy(network), method.objective, ())
    open_step(Case(method, step, (), batch, torch.empty(0)), optimiser)


def _peak_bytes() -> float:
    """Return the peak of this very process; `ru_maxrss` would begin with what its parent had at the start of it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.split("VmHWM:")[1].split()[0])


def write_ledger(folder: Path) -> None:
    """Write 10,000 entries: reservations of 20 jobs, five mechanisms in all, and their commits."""
    ledger.create_ledger(folder, site="bench", population="patients", now=lambda: _STARTED)
    key = Ed25519PrivateKey.from_private_bytes((folder / ledger.KEY_FILE).read_bytes())
    lines = [(folder / ledger.FILE).read_text()]
    head = ledger.read_ledger(folder).head.sha256
    for sequence in range(1, LEDGER_ENTRIES):
        then = _STARTED + timedelta(minutes=sequence)
        sealed = seal(Entry(sequence=sequence, previous=head, time=then, body=_body(sequence)), key)
        lines.append(f"{sealed.line}\n")
        head = chained(head, (sealed.digest,))
    (folder / ledger.FILE).write_text("".join(lines))


def _body(sequence: int) -> Body:
    """Return a reservation at odd places, behind each its commit."""
    if sequence % 2 == 0:
        return Commit(reservation=sequence - 1, reply_sha256=f"{sequence:064x}")
    number, hashed = sequence // 2, f"{sequence:064x}"
    job = number * JOBS * 2 // LEDGER_ENTRIES
    return Reservation(
        binding=Binding(
            job_id=f"job-{job}", round=number, plan_sha256=hashed, weights_sha256=hashed, data_fingerprint="bench"
        ),
        commitment=hashed,
        dp=_privacy(_mechanism_of(job), patients=50_000),
        steps=STEPS,
        total_steps=STEPS * LEDGER_ENTRIES,
        epsilon_run=1.0,
        epsilon_lifetime=1.0,
        epsilon_private=1.0,
        prv=1.0,
        pld=1.0,
        limit_run=100.0,
        limit_lifetime=100.0,
        delta=default_delta(50_000),
        code="bench",
        method_sha256=hashed,
    )


def _mechanism_of(job: int) -> Mechanism:
    return MECHANISMS[job % len(MECHANISMS)]


def _privacy(mechanism: Mechanism, *, patients: int) -> PatientPrivacy:
    return PatientPrivacy(
        noise_multiplier=mechanism.noise_multiplier,
        clip_norm=1.0,
        sampling_rate=mechanism.sampling_rate,
        declared_patients=patients,
        images_per_patient=4,
        delta=default_delta(patients),
        modules=("encoder", "classifier", "decoder"),
        module_weights={"encoder": 1.0, "classifier": 1.0, "decoder": 1.0},
        rounds=LEDGER_ENTRIES,
        epsilon=8.0,
    )


def _price_one_more(folder: Path) -> float:
    """Return the seconds of one more round's price, for its run and for the lifetime, with the ledger opened first."""
    import dp_accounting.pld  # noqa: F401  (what the accountants import on first use)
    import opacus.accountants.analysis.prv  # noqa: F401
    import scipy.fft
    import scipy.special  # noqa: F401

    coordinator, population = Ed25519PrivateKey.generate(), PopulationSettings(declared_patients=50_000)
    books = Books(folder, "bench", population)
    started = time.perf_counter()
    with books.opened(None, coordinator.public_key()) as opened:
        if opened.head.length != LEDGER_ENTRIES:
            raise RuntimeError("not the ledger that was written")
        books.priced(opened.entries, f"job-{JOBS - 1}", _mechanism_of(JOBS - 1), STEPS)
    return time.perf_counter() - started


def figures() -> dict[str, float]:
    """Return all figures of patient privacy."""
    return {
        "dp_step_ratio_128px": step_ratio(),
        "dp_memory_ratio": memory_ratio(),
        "dp_clipped_sum_difference": clipped_sum_difference(),
        "dp_noise_std_error": noise_std_error(),
        "dp_noise_2m_s": noise_2m_s(),
        "dp_epsilon_accountant_difference": accountant_difference(),
        "ledger_pricing_s_10k": pricing_s(),
    }


if __name__ == "__main__":
    task, place = sys.argv[1], Path(sys.argv[2])
    print(_price_one_more(place) if task == "price" else _memory(task.removeprefix("memory-"), place))
