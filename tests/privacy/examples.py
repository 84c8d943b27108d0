"""An independent oracle: the loss of `multimix.objective` as rows of one fixed shape, and `vmap(grad)` over them.

`torch.func.vmap(grad)` wants one function of one record. Here a record is one view of one image together with
all that its loss compares with: targets, bridge and dropout masks are data, and what does not apply has weight 0.

    l = a CE(logits + prior, class) + b [Dice + gamma BCE](mask) + c KL(probability || mask)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from multimix.config import NetworkConfig, ObjectiveConfig
from multimix.network import BLOCKS, Dropout, MultiMixNetwork
from multimix.objective import Batch, Slots, Targets, bernoulli_divergence, dice_loss, targets
from multimix.privacy.dp_sgd import ONE_EACH, Named, PrivateStep

Row = dict[str, Tensor]


@dataclass(frozen=True)
class Examples:
    """Rows of one shape: `rows` maps names to tensors [n, ...]; `source` is each row's image in the batch.

    Images count in the order labelled, unlabelled, masked, as in `Batch.dropout_seeds`.
    """

    rows: Row
    source: Tensor  # [n] int64

    def __len__(self) -> int:
        return len(self.source)

    def at(self, rows: Tensor) -> "Examples":
        """Return some of the rows."""
        return Examples({name: value[rows] for name, value in self.rows.items()}, self.source[rows])


@dataclass(frozen=True)
class Weights:
    """What each term of a row counts."""

    label: float
    pseudo_label: float
    mask: float
    consistency: float


def weights_of(objective: ObjectiveConfig, planned: Slots, ramp: float) -> Weights:
    """Return the constants of the loss for a plan's slots and the ramp in [0, 1] of what has no label."""
    return Weights(
        label=1.0 / max(1, planned.labelled),
        pseudo_label=objective.unlabelled_classification_weight * ramp / max(1, planned.unlabelled_classification),
        mask=objective.segmentation_weight / max(1, planned.masked),
        consistency=objective.unlabelled_segmentation_weight * ramp / max(1, planned.unlabelled_segmentation),
    )


def examples(
    config: NetworkConfig,
    batch: Batch,
    target: Targets,
    objective: ObjectiveConfig,
    weights: Weights,
    *,
    dropout: Dropout | None = None,
) -> tuple[Examples, Examples]:
    """Return the rows that are only encoded and classified, and those that are decoded as well."""
    a, u, b = batch.labelled.shape[0], batch.strong.shape[0], batch.masked.shape[0]
    device, dtype = batch.strong.device, batch.strong.dtype
    use_mask = batch.teaches_decoder & config.segmentation & objective.semi_supervised
    use_class = batch.teaches_classifier & config.classification & objective.semi_supervised
    position = torch.arange(a + u + b, device=device)
    labelled, strong, masked = position[:a], position[a : a + u], position[a + u :]
    if not config.classification:
        labelled = labelled[:0]
    if not config.segmentation:
        masked = masked[:0]
    zeros = torch.zeros(a + u + b, device=device, dtype=dtype)
    class_weight, mask_weight, consistency = zeros.clone(), zeros.clone(), zeros.clone()
    class_weight[labelled] = weights.label
    class_weight[strong] = weights.pseudo_label * target.confident * use_class
    mask_weight[masked] = weights.mask
    consistency[strong] = weights.consistency * use_mask.to(dtype)
    prior = torch.zeros(a + u + b, 2, device=device, dtype=dtype)
    prior[:a] = batch.log_prior.to(dtype)
    classes = torch.cat([batch.labels, target.pseudo_labels, batch.labels.new_zeros(b)])
    images = torch.cat([batch.labelled, batch.strong, batch.masked])
    rows = {"image": images, "class": classes, "class_weight": class_weight, "prior": prior}
    encoded = torch.cat([labelled, strong[use_class & ~use_mask]])
    decoded = torch.cat([strong[use_mask], masked])
    first = Examples(rows, position).at(encoded)
    second = Examples({**rows, "mask_weight": mask_weight, "consistency": consistency}, position).at(decoded)
    second.rows["mask"] = torch.cat([target.mask_probability, batch.masks[: len(masked)]])
    bridges = [x for x in (target.strong_bridge, target.masked_bridge) if x is not None]
    if bridges and len(decoded):
        second.rows["bridge"] = torch.cat(bridges)
    for part, layers in ((first, range(BLOCKS)), (second, range(2 * BLOCKS - 1))):
        _add_dropout(part, config, dropout, layers)
    return first, second


def _add_dropout(part: Examples, config: NetworkConfig, dropout: Dropout | None, layers: range) -> None:
    """Put each image's masks of each layer among its data."""
    if dropout is None or dropout.probability == 0.0 or not len(part):
        return
    chosen = dropout.at(part.source.tolist())
    for layer in layers:
        level = layer if layer < BLOCKS else 2 * BLOCKS - 2 - layer
        side = config.image_size >> level
        like = part.rows["image"].new_empty((1, 1, 1, 1)).expand(len(part), config.width << level, side, side)
        part.rows[f"dropout{layer}"] = chosen.masks(like, layer)


class _Given(Dropout):
    """Dropout masks that are data of the one image at hand."""

    def __init__(self, row: Row) -> None:
        super().__init__((), 0.0, "element")
        self.row = row

    def __call__(self, features: Tensor, layer: int) -> Tensor:
        mask = self.row.get(f"dropout{layer}")
        return features if mask is None else features * mask[None]


class ImageLoss(nn.Module):
    """The loss of one row, as a module, so that `functional_call` can give it the parameters."""

    def __init__(self, network: MultiMixNetwork, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, row: Row) -> Tensor:
        """Return the scalar loss of one image."""
        dropout = _Given(row)
        levels = self.network.encode(row["image"][None], dropout)
        loss = row["class_weight"].new_zeros(())
        if self.network.classifier is not None:
            logits = self.network.classify(levels) + row["prior"]
            loss = row["class_weight"] * functional.cross_entropy(logits, row["class"][None])
        if "mask" not in row:
            return loss
        bridge = row["bridge"][None] if "bridge" in row else None
        mask_logits, mask = self.network.decode(levels, bridge, dropout), row["mask"][None]
        supervised = dice_loss(mask_logits, mask)
        if self.objective.cross_entropy_weight:
            pixels = functional.binary_cross_entropy_with_logits(mask_logits, mask)
            supervised = supervised + self.objective.cross_entropy_weight * pixels
        divergence = bernoulli_divergence(mask, mask_logits)
        return loss + (row["mask_weight"] * supervised + row["consistency"] * divergence)[0]


def loss_at(module: ImageLoss, parameters: Mapping[str, Tensor], row: Row) -> Tensor:
    """Return the loss of one row at these parameters, named as in the network; others stay as they are."""
    named = {f"network.{name}": value for name, value in parameters.items()}
    loss: Tensor = functional_call(module, named, (row,))
    return loss


def patient_gradients(step: PrivateStep, batch: Batch, patient: Tensor) -> Named:
    """Return all patients' summed gradients at once, by name [patients, ...]; `patient` numbers the batch's images."""
    objective, module = step.objective, ImageLoss(step.student, step.objective)
    target = targets(step.student, step.teacher, batch, objective)
    dropout = Dropout(batch.dropout_seeds, objective.dropout, objective.dropout_kind)
    weights = weights_of(objective, ONE_EACH, step.ramp)
    learning = {name: value.detach() for name, value in step.learning.items()}
    total = {name: value.new_zeros((int(patient.max()) + 1, *value.shape)) for name, value in learning.items()}
    for part in examples(step.student.config, batch, target, objective, weights, dropout=dropout):
        if len(part):
            with torch.no_grad():  # of the frozen parameters; `grad` takes its own all the same
                found = vmap(grad(lambda p, r: loss_at(module, p, r)), in_dims=(None, 0))(learning, part.rows)
            for name, gradient in found.items():
                total[name].index_add_(0, patient[part.source], gradient)
    return total
