import pytest
import torch
from privacy.batches import batch_of, networks
from privacy.examples import ImageLoss, examples, loss_at, weights_of
from torch.func import grad, vmap

from multimix.config import preset, row
from multimix.network import Dropout
from multimix.objective import Slots, targets
from multimix.privacy.dp_sgd import ONE_EACH
from multimix.training import step_gradients


@pytest.mark.parametrize("method_name", ["paper", "modern"])
@pytest.mark.parametrize("row_name", ["multimix", "umtl", "enc-ssl", "u-net", "zero-saliency"])
def test_gradients_of_the_rows_add_up_to_the_ordinary_step_s(method_name, row_name):
    method = row(row_name, preset(method_name, image_size=32, width=2))
    objective = method.objective.model_copy(update={"confidence_threshold": 0.5})
    student, teacher = networks(method)
    batch, planned = batch_of(labelled=3, unlabelled=6, masked=2), Slots(3, 4, 5, 6)
    dropout = Dropout(batch.dropout_seeds, objective.dropout, objective.dropout_kind)
    step_gradients(student, teacher, batch, planned, objective, ramp=0.7, dropout=dropout)
    parameters = {name: value.detach() for name, value in student.named_parameters()}
    module, total = ImageLoss(student, objective), {name: torch.zeros_like(p) for name, p in parameters.items()}
    target = targets(student, teacher, batch, objective)
    parts = examples(method.network, batch, target, objective, weights_of(objective, planned, 0.7), dropout=dropout)
    for part in parts:
        if len(part):
            gradients = vmap(grad(lambda p, r: loss_at(module, p, r)), in_dims=(None, 0))(parameters, part.rows)
            total = {name: total[name] + gradients[name].sum(0) for name in total}
    for name, parameter in student.named_parameters():
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(total[name], expected, rtol=1e-10, atol=1e-12)


def test_every_image_that_teaches_is_a_row_once_and_others_are_none():
    method = preset("modern", image_size=32, width=2)
    student, teacher = networks(method)
    batch = batch_of(labelled=2, unlabelled=6, masked=3)  # of six: 2 teach both, 2 the class, 2 the mask
    target = targets(student, teacher, batch, method.objective)
    weights = weights_of(method.objective, ONE_EACH, 1.0)
    encoded, decoded = examples(method.network, batch, target, method.objective, weights)
    assert encoded.source.tolist() == [0, 1, 3, 6]  # labelled 0 and 1; unlabelled 1 and 4, of the class alone
    assert decoded.source.tolist() == [2, 4, 5, 7, 8, 9, 10]
