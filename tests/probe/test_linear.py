"""Linear probes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from igpt.config import UserError
from igpt.probe.linear import (
    STRENGTHS,
    FeatureTransform,
    LayerData,
    fit_probe,
    log_loss,
    logistic_path,
    metric_value,
)
from igpt.probe.store import source_fingerprint


def clusters(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures' features [n, width] about three centres, and which [n]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, width))
    labels = np.concatenate((np.arange(3), rng.integers(0, 3, n - 3)))
    noise = rng.normal(size=(n, width)) * 1.5
    return ((centres[labels] + noise) * 5 + 3).astype(np.float32), labels


def test_the_folded_probe_is_scikit_learns_on_standardised_features() -> None:
    x, y = clusters(200, 12)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x, y)
    transform = FeatureTransform.fit(x)
    ((weight, bias),) = logistic_path(transform(x), y, 3, (0.1,))
    logits = transform.fold(weight, bias).logits(x)
    difference = logits - logits.mean(1, keepdims=True) - theirs.decision_function(x)
    assert np.abs(difference).max() < 2e-3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(6, 20))
def test_more_features_than_labels_give_the_same_probe_on_their_span(seed: int, n: int) -> None:
    x, y = clusters(n, 40, seed)
    ((weight, bias),) = logistic_path(x, y, 3, (0.01,))
    direct = LogisticRegression(C=0.01, max_iter=2000, tol=1e-6).fit(x, y)
    ours = x @ weight.T + bias
    ours -= ours.mean(axis=1, keepdims=True)
    theirs = direct.decision_function(x)
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()  # where each solver stops


def test_principal_components_are_folded_too() -> None:
    x, y = clusters(100, 30)
    transform = FeatureTransform.fit(x, components=5)
    assert transform(x).shape == (100, 5)
    ((weight, bias),) = logistic_path(transform(x), y, 3, (1.0,))
    assert np.allclose(
        transform.fold(weight, bias).logits(x), transform(x) @ weight.T + bias, atol=1e-3
    )


def test_validation_chooses_the_layer_that_knows_the_class() -> None:
    x, y = clusters(300, 10)
    noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    layers = {
        "noise": LayerData(noise[:200], noise[200:], FeatureTransform.fit(noise)),
        "signal": LayerData(x[:200], x[200:], FeatureTransform.fit(x)),
    }
    fitted = fit_probe(layers.items(), y[:200], y[200:], 3)
    assert fitted.layer == "signal"
    assert fitted.by_layer["noise"] < 0.6 < fitted.by_layer["signal"] == fitted.validation
    assert metric_value("accuracy", y[200:], fitted.probe.predict(x[200:])) == fitted.validation


@pytest.mark.parametrize(("metric", "layer"), [("accuracy", "one"), ("balanced_accuracy", "both")])
def test_validation_chooses_by_the_metric_that_is_asked(metric: str, layer: str) -> None:
    transform = FeatureTransform(np.zeros(1, np.float32), np.ones(1, np.float32))
    train, labels = np.float32([[-1]] * 10 + [[1]] * 10), np.repeat([0, 1], 10)
    one, both = np.float32([[-1]] * 10), np.float32([[-1]] * 7 + [[1]] * 3)
    layers = {"one": LayerData(train, one, transform), "both": LayerData(train, both, transform)}
    held_out = np.array([0] * 9 + [1])  # accuracy 0.9 and 0.8, balanced 0.5 and 0.89
    assert fit_probe(layers.items(), labels, held_out, 2, metric).layer == layer


def test_validation_chooses_the_strength() -> None:
    x, y = clusters(230, 60, seed=1)
    rng = np.random.default_rng(0)
    x += rng.normal(size=x.shape).astype(np.float32) * 12  # so that a weak penalty learns noise
    data = LayerData(x[:30], x[30:], FeatureTransform.fit(x))
    values = [
        metric_value("accuracy", y[30:], data.transform.fold(weight, bias).predict(x[30:]))
        for weight, bias in logistic_path(data.transform(x[:30]), y[:30], 3, STRENGTHS)
    ]
    best = int(np.argmax(values))
    assert 0 < best < len(STRENGTHS) - 1
    fitted = fit_probe([("0", data)], y[:30], y[30:], 3)
    assert fitted.strength == STRENGTHS[best]
    assert fitted.validation == values[best] > max(values[0], values[-1])


def test_of_equal_accuracies_the_least_loss_decides() -> None:
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    # Far apart: right with any penalty, but a strong one makes all probabilities alike.
    x = (10 * np.eye(3)[y] + rng.normal(size=(60, 3))).astype(np.float32)
    data = LayerData(x[:30], x[30:], FeatureTransform.fit(x))
    fitted = fit_probe([("0", data)], y[:30], y[30:], 3)
    assert fitted.validation == 1
    losses = [
        log_loss(data.transform.fold(weight, bias).logits(x[30:]), y[30:])
        for weight, bias in logistic_path(data.transform(x[:30]), y[:30], 3, STRENGTHS)
    ]
    assert losses[0] > 1 > 0.1 > min(losses)
    assert fitted.strength == STRENGTHS[int(np.argmin(losses))]


def test_the_log_loss_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert log_loss(logits, labels) == pytest.approx(metrics.log_loss(labels, p, labels=range(4)))
    logits[:, 2] = -np.inf  # a class that training lacked
    assert log_loss(logits, np.full(20, 2)) == pytest.approx(-np.log(1e-15))


def test_two_classes_and_classes_without_a_label_are_no_special_case() -> None:
    x, y = clusters(90, 8)
    x, y = x[y != 1], 1 + y[y != 1] // 2  # of classes 0 to 4, 1 and 2 have labels
    fitted = fit_probe([("0", LayerData(x, x, FeatureTransform.fit(x)))], y, y, n_classes=5)
    assert set(fitted.probe.predict(x)) == {1, 2}
    assert fitted.validation > 0.8
    assert np.isneginf(fitted.probe.logits(x)[:, [0, 3, 4]]).all()


def test_a_constant_feature_is_not_divided_by_its_rounding_errors() -> None:
    x, y = clusters(50, 6)
    x[:, 2] = 7
    constants = np.linspace(1, 3, 200, dtype=np.float32) * np.ones((5000, 1), np.float32)
    assert (FeatureTransform.fit(constants).scale == 1).all()  # whose sums in float32 are not exact
    fitted = fit_probe([("0", LayerData(x, x, FeatureTransform.fit(x)))], y, y, 3)
    assert np.isfinite(fitted.probe.weight).all()


def test_one_class_only_is_refused() -> None:
    x, _ = clusters(10, 4)
    with pytest.raises(UserError, match="two classes"):
        fit_probe(
            [("0", LayerData(x, x, FeatureTransform.fit(x)))],
            np.zeros(10, int),
            np.zeros(10, int),
            3,
        )


def test_metrics_are_what_they_are_called() -> None:
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert metric_value("accuracy", labels, predicted) == 0.75
    assert metric_value("balanced_accuracy", labels, predicted) == 0.5
    with pytest.raises(UserError, match="unknown metric"):
        metric_value("f1", labels, predicted)


def test_a_source_whose_name_is_no_text_has_a_mark_too() -> None:
    assert source_fingerprint("/pictures\udcff") != source_fingerprint("/pictures")
