"""L_AR and L_BERT, one value a picture."""

from __future__ import annotations

import math

import pytest
import torch

from igpt.data.loader import Batch
from igpt.evaluate import Likelihood, picture_nats
from igpt.objectives import AR, BERT, masked_mean, token_nats
from test_model import AR as AR_CONFIG
from test_model import BERT as BERT_CONFIG
from test_model import random_model


def batch(n: int = 6, step: int = 0, seed: int = 0) -> Batch:
    tokens = torch.randint(11, (n, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, None, step, range(n))


def test_token_nats_are_minus_the_log_of_the_probability() -> None:
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    expected = [-math.log(0.25), math.log(2)]
    assert token_nats(logits, torch.tensor([[1, 0]]))[0].tolist() == pytest.approx(expected)


def test_a_picture_with_nothing_masked_counts_zero_and_divides_by_none() -> None:
    nats = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 3.0]])
    masked = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(nats, masked).tolist() == [3.5, 0.0]


def test_ar_is_the_mean_over_the_sequence_and_its_exponential_sums_to_one() -> None:
    model = random_model(AR_CONFIG)
    pair = torch.cartesian_prod(torch.arange(11), torch.arange(11))  # all pictures of two pixels
    values = AR()(model, pair)
    assert torch.exp(-values * 2).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_mask_is_a_function_of_seed_step_and_row() -> None:
    objective = BERT(0.15, seed=1, stream="train")
    whole = objective.inputs(batch(6, step=3))[1]
    assert torch.equal(whole, objective.inputs(batch(6, step=3))[1])
    part = Batch(batch(6, step=3).tokens[2:5], None, 3, range(2, 5))
    assert torch.equal(objective.inputs(part)[1], whole[2:5])
    assert not torch.equal(whole, objective.inputs(batch(6, step=4))[1])
    assert not torch.equal(whole, BERT(0.15, 2, "train").inputs(batch(6, step=3))[1])
    assert not torch.equal(whole, BERT(0.15, 1, "evaluate").inputs(batch(6, step=3))[1])


def test_each_position_is_masked_with_the_probability_asked() -> None:
    pictures = Batch(torch.zeros(4000, 64, dtype=torch.long), None, 0, range(4000))
    masked = BERT(0.15, seed=0, stream="train").inputs(pictures)[1].float()
    assert masked.mean(0).tolist() == pytest.approx([0.15] * 64, abs=4 * math.sqrt(0.1275 / 4000))


def test_a_small_picture_hides_one_position_where_it_would_hide_none() -> None:
    masked = BERT(0.05, seed=0, stream="train").inputs(batch(4000))[1]
    hidden = masked.sum(1).bincount()
    assert hidden[0] == 0
    share = 0.95**9 + 9 * 0.05 * 0.95**8  # none or one by chance
    assert hidden[1].item() == pytest.approx(4000 * share, abs=4 * math.sqrt(4000 * share))


def test_masks_of_evaluation_do_not_depend_on_how_many_fit_in_memory() -> None:
    model, tokens = random_model(BERT_CONFIG), batch(11).tokens
    whole, *parts = (
        picture_nats(model, BERT(0.5, 0, "evaluate"), tokens, size, mask_batch=4)
        for size in (4, 2, 1)
    )
    for part in parts:
        torch.testing.assert_close(part, whole)


def test_evaluation_counts_every_picture_once_whatever_the_batch() -> None:
    model, tokens = random_model(AR_CONFIG), batch(7).tokens
    values = [picture_nats(model, AR(), tokens, size) for size in (1, 2, 7, 100)]
    assert all(torch.allclose(value, values[0], atol=1e-6) for value in values)
    nats = picture_nats(model, AR(), tokens, 3)
    assert nats.shape == (7,)
    total = Likelihood(nats.mean().item(), n_pixels=9, count=7)
    assert total.bits_per_pixel == pytest.approx(total.nats_per_pixel / math.log(2))
    assert total.nats_per_picture == pytest.approx(total.nats_per_pixel * 9)
