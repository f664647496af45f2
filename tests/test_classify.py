"""From logits to classes, and how good they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score

from igpt.classify import HeadClassifier, Prediction, as_classes, calibration_error, report, vote
from igpt.config import ModelConfig, UserError
from test_model import random_model

ABC = ("a", "b", "c")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 36}


def test_the_modal_class_wins_even_where_the_mean_of_the_logits_says_otherwise() -> None:
    logits = np.array([[[9.0, 0, 0], [0, 1, 0], [0, 1, 0]]], np.float32)  # [1, 3 masks, 3]
    assert vote(logits, "modal", class_names=ABC).labels.tolist() == [1]
    assert vote(logits, "modal", class_names=ABC).names == ["b"]
    assert vote(logits, "logits", class_names=ABC).labels.tolist() == [0]
    probabilities = vote(logits, "modal", class_names=ABC).probabilities
    assert probabilities == pytest.approx(softmax(logits, axis=2).mean(axis=1))


def test_the_class_of_averaged_logits_is_the_likeliest_one() -> None:
    logits = np.array([[[3, 0, 0], [0, 1.4, 0], [0, 1.4, 0]]], np.float32)
    averaged = vote(logits, "logits", class_names=ABC)
    assert averaged.labels.tolist() == [0]
    assert averaged.probabilities[0] == pytest.approx(softmax(logits[0].mean(axis=0)), abs=1e-6)
    each = vote(logits, "modal", class_names=ABC).probabilities
    assert each[0] == pytest.approx(softmax(logits[0], axis=1).mean(axis=0), abs=1e-6)


def test_ties_of_votes_are_broken_at_random_and_always_alike() -> None:
    logits = np.tile(np.array([[[1.0, 0, -1], [0, 1.0, -1]]], np.float32), (200, 1, 1))
    labels = vote(logits, "modal", class_names=ABC).labels
    assert set(labels) == {0, 1}
    assert 60 < (labels == 0).sum() < 140
    assert np.array_equal(labels, vote(logits, "modal", class_names=ABC).labels)


def test_the_report_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 200)
    labels = rng.integers(0, 4, 200)
    predicted = probabilities.argmax(axis=1)
    result = report(labels, Prediction(predicted, probabilities, tuple("abcd")))
    assert result.accuracy == (labels == predicted).mean()
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result.precision == pytest.approx(precision_score(labels, predicted, average=None))
    assert result.recall == pytest.approx(recall_score(labels, predicted, average=None))
    expected = [
        [int(((labels == true) & (predicted == taken)).sum()) for taken in range(4)]
        for true in range(4)
    ]
    assert result.confusion.tolist() == expected  # rows are the true classes
    assert result.support.tolist() == np.bincount(labels).tolist()
    holes = np.arange(0, 201, 10)  # pictures without a label, which are left out
    more = np.insert(probabilities, holes, probabilities[0], axis=0)
    prediction = Prediction(more.argmax(axis=1), more, tuple("abcd"))
    holed = report(np.insert(labels, holes, -1), prediction)
    for name, value in vars(result).items():
        assert np.array_equal(getattr(holed, name), value), name


def test_calibration_is_zero_for_honest_confidence_and_large_for_boasting() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.3).astype(np.int64)
    honest = Prediction(np.zeros(20_000, int), np.tile([0.7, 0.3], (20_000, 1)), ("no", "yes"))
    assert calibration_error(labels, honest) < 0.01
    boasting = Prediction(np.zeros(20_000, int), np.tile([1.0, 0.0], (20_000, 1)), ("no", "yes"))
    assert calibration_error(labels, boasting) == pytest.approx(0.3, abs=0.01)
    wrong = np.repeat([0, 1, 0, 1], [70, 30, 80, 20])  # 0.9 sure, 0.7 right; 0.6 sure, 0.8 right
    sure = np.repeat([0.9, 0.6], 100)
    mixed = Prediction(np.zeros(200, int), np.stack([sure, 1 - sure], axis=1), ("no", "yes"))
    assert calibration_error(wrong, mixed) == pytest.approx(0.2)


@pytest.mark.parametrize("causal", [True, False])
def test_the_head_averages_the_trunk_and_bert_sees_masked_pictures(causal: bool) -> None:
    model = random_model(ModelConfig(**SIZES, n_classes=3, causal=causal))
    tokens = torch.randint(11, (5, 36), generator=torch.Generator().manual_seed(0))
    whole = model.clf(model.trunk(tokens).mean(dim=1)).detach()
    names = ("a", "b", "c")
    unmasked = whole.softmax(dim=1).numpy()
    masked = HeadClassifier(model, names).predict(tokens)
    assert np.allclose(masked.probabilities, unmasked, atol=1e-6) == causal
    again = HeadClassifier(model, names).predict(tokens)
    assert np.array_equal(masked.probabilities, again.probabilities)
    one = HeadClassifier(model, names, masks=1).predict(tokens)
    assert np.array_equal(one.probabilities, masked.probabilities) == causal


def test_labels_are_matched_by_name_and_else_by_number() -> None:
    labels, known = np.array([1, 0, -1, 1]), ("bag", "coat", "shoe")
    assert as_classes(labels, ("shoe", "bag"), known, "D").tolist() == [0, 2, -1, 0]
    with pytest.warns(UserWarning, match="matched by number, so 0 is taken for bag"):
        assert as_classes(labels, None, known, "D").tolist() == labels.tolist()
    digits = tuple("0123456789")
    assert as_classes(labels, ("7", "3"), digits, "D").tolist() == [3, 7, -1, 3]
    assert as_classes(labels, None, ("0", "10", "1"), "D").tolist() == [2, 0, -1, 2]
    assert as_classes(np.array([-2, 1, -9]), None, digits, "D").tolist() == [-1, 1, -1]
    with pytest.raises(UserError, match="does not know 10; it knows 0"):
        as_classes(labels, ("10", "3"), digits, "D")
    with pytest.warns(UserWarning, match="cat is taken for 0"):
        assert as_classes(labels, ("cat", "dog"), ("0", "1"), "D").tolist() == labels.tolist()
    with pytest.raises(UserError, match="D: the classifier does not know hat; it knows bag, coat"):
        as_classes(labels, ("bag", "hat"), known, "D")
    assert as_classes(labels[1:3], ("bag", "hat"), known, "D").tolist() == [0, -1]
    with pytest.raises(UserError, match=f"label {10**12}, but the classifier knows 0 to 9"):
        as_classes(np.array([10**12]), None, digits, "D")
    with pytest.raises(UserError, match="label 1, but the classifier knows 0 to 0"):
        as_classes(labels, None, ("bag",), "D")
