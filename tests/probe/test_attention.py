"""The attentive probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from igpt.probe.attention import AttentionHead, fit_attention


def test_queries_learn_where_to_look() -> None:
    """The class stands at one position, which is marked; the others say anything."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = rng.normal(scale=0.1, size=(400, 16, 4)).astype(np.float32)
    x[..., 1] += rng.choice([-1, 1], (400, 16))
    here = (range(400), rng.integers(16, size=400))
    x[*here, 0] += 1
    x[*here, 1] = 2 * y - 1
    train, validation = x[:300].reshape(300, -1), x[300:].reshape(100, -1)
    options = {"width": 4, "n_classes": 2, "metric": "accuracy", "seed": 0}
    head, reached = fit_attention(train, y[:300], validation, y[300:], **options)
    assert reached > 0.95
    assert reached == (head.predict(validation) == y[300:]).mean()
    with torch.no_grad():
        head.query.zero_()  # the mean over positions
    assert (head.predict(validation) == y[300:]).mean() < 0.8


def test_each_head_averages_values_where_its_query_looks() -> None:
    """The definition, with a key and a value for every position."""
    generator = torch.Generator().manual_seed(0)
    head = AttentionHead(64, 3)
    head.init_weights(generator)
    head.query.data.normal_(generator=generator)
    head.out.weight.data.normal_(generator=generator)
    head.mean.normal_(generator=generator)
    n = torch.randn(5, 9, 64, generator=generator)
    key, value = (layer(n - head.mean).view(5, 9, 2, 32) for layer in (head.key, head.value))
    attention = (torch.einsum("bthw,hw->bth", key, head.query) / 32**0.5).softmax(dim=1)
    expected = head.out(torch.einsum("bth,bthw->bhw", attention, value).flatten(1))
    torch.testing.assert_close(head(n), expected)


def test_the_head_that_validation_liked_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(12, 4 * 8)).astype(np.float32)
    y, seen, worth = np.arange(12) % 2, list[np.ndarray](), iter([0.2, 0.9, 0.5])

    def predict(self: AttentionHead, features: np.ndarray) -> np.ndarray:
        seen.append(self.logits(features))
        return seen[-1].argmax(axis=1)

    monkeypatch.setattr(AttentionHead, "predict", predict)
    monkeypatch.setattr("igpt.probe.attention.metric_value", lambda *_: next(worth))
    monkeypatch.setattr("igpt.probe.attention.STEPS", 6)
    monkeypatch.setattr("igpt.probe.attention.VALIDATIONS", 3)
    head, best = fit_attention(x, y, x, y, width=8, n_classes=2, metric="accuracy", seed=0)
    assert best == 0.9
    assert np.array_equal(head.logits(x), seen[1])
    assert not np.array_equal(seen[1], seen[2])
