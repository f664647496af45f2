"""Decoding: the cache, the filters, the seeds."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.attention import KVCache
from igpt.config import UserError
from igpt.decoders import PlainDecoder
from igpt.model import ImageGPT
from igpt.plan import cache_bytes
from igpt.sample import Sampling, draw, generate, probabilities
from test_model import AR, BERT, random_model

EMPTY = torch.empty(1, 0, dtype=torch.long)


def completed(
    model: ImageGPT, prefix: torch.Tensor, n: int, sampling: Sampling, together: int = 256
) -> torch.Tensor:
    """Tokens [B, n, T] of all completions, of which up to `together` are decoded side by side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igpt.sample.MAX_BATCH", together)
        batches = list(generate(model, prefix, n, sampling))
    return torch.cat(batches).view(len(prefix), n, -1)


def test_cached_and_uncached_logits_agree() -> None:
    model = random_model(AR)
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens)  # [B, T, K]
        for prefill in (0, 1, 5):
            cache = model.new_cache(3)
            for t in range(prefill, 9):
                logits = model.next_logits(tokens[:, :t], cache)
                torch.testing.assert_close(logits, expected[:, t], atol=1e-5, rtol=0)
                assert cache.length == t + 1


def test_several_positions_at_once_on_a_part_filled_cache_agree_too() -> None:
    model = random_model(AR)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = model.new_cache(2)
        model.next_logits(tokens[:, :3], cache)
        logits = model.next_logits(tokens[:, :8], cache)
        torch.testing.assert_close(logits, model(tokens)[:, 8], atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_pictures_whatever_the_batch_size() -> None:
    model, exact = random_model(AR), Sampling(seed=5, precision="float32")
    prefix = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(0))
    for given_tokens, n in ((EMPTY, 7), (prefix, 3)):
        whole = completed(model, given_tokens, n, exact, together=64)
        for batch_size in (1, 2, 4):
            parts = completed(model, given_tokens, n, exact, together=batch_size)
            assert torch.equal(whole, parts)
    assert not torch.equal(whole, completed(model, prefix, 3, Sampling(seed=6)))


@pytest.mark.parametrize(
    ("held", "prefixes", "n", "batches"),
    [
        (0, 1, 7, [1] * 7),
        (3, 1, 7, [2, 2, 2, 1]),  # beside the one that is started
        (9, 1, 7, [7]),
        (4, 5, 1, [2, 2, 1]),  # beside as many
    ],
)
def test_no_more_caches_are_there_at_once_than_memory_holds(
    monkeypatch: pytest.MonkeyPatch, held: int, prefixes: int, n: int, batches: list[int]
) -> None:
    caches: weakref.WeakSet[KVCache] = weakref.WeakSet()
    most = 0

    def count(self: KVCache) -> None:
        nonlocal most
        caches.add(self)
        most = max(most, sum(cache.keys.shape[1] for cache in caches))

    monkeypatch.setattr(KVCache, "__post_init__", count, raising=False)
    monkeypatch.setattr(KVCache, "__hash__", object.__hash__)
    free = held * cache_bytes(AR, "float32")
    monkeypatch.setattr("igpt.sample.decoding_memory", lambda _device: free)
    prefix = torch.zeros(prefixes, 4, dtype=torch.long)
    painted = generate(random_model(AR), prefix, n, Sampling(precision="float32"))
    assert [len(batch) for batch in painted] == batches
    assert most <= max(held, 2)


def test_what_is_given_is_computed_once_for_all_its_completions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[torch.Size] = []
    blocks = ImageGPT._run_blocks

    def counted(self: ImageGPT, h: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        computed.append(h.shape)
        return blocks(self, h, cache)

    monkeypatch.setattr(ImageGPT, "_run_blocks", counted)
    prefix = torch.tensor([[1, 2, 3, 4, 5], [4, 5, 6, 7, 8]])
    completed(random_model(AR), prefix, 6, Sampling(precision="float32"))
    first, *steps = [(rows, positions) for rows, positions, _ in computed]
    assert first == (2, 6)  # two pictures, with the start token, in one pass
    assert steps == [(12, 1)] * 3  # then their completions, a pixel at a time


@pytest.mark.parametrize(
    ("batch_size", "prefixes", "rows"),
    [(4, [1] * 4, [3] * 4), (7, [2, 2], [6, 6]), (2, [1] * 4, [2, 1] * 4)],
)
def test_a_picture_and_its_completions_share_a_batch_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, prefixes: list[int], rows: list[int]
) -> None:
    started: list[int] = []
    prefill = PlainDecoder.prefill

    def counted(self: PlainDecoder, prefix: torch.Tensor) -> torch.Tensor:
        started.append(len(prefix))
        return prefill(self, prefix)

    monkeypatch.setattr(PlainDecoder, "prefill", counted)
    prefix = torch.randint(11, (4, 4), generator=torch.Generator().manual_seed(0))
    exact = Sampling(precision="float32")
    monkeypatch.setattr("igpt.sample.MAX_BATCH", batch_size)
    batches = [*generate(random_model(AR), prefix, 3, exact)]
    assert started == prefixes
    assert [len(batch) for batch in batches] == rows
    assert torch.equal(
        torch.cat(batches), completed(random_model(AR), prefix, 3, exact).flatten(0, 1)
    )


def test_completions_keep_what_was_given_and_differ_in_the_rest() -> None:
    model = random_model(AR)
    prefix = torch.tensor([[1, 2, 3], [4, 5, 6]])
    tokens = completed(model, prefix, 5, Sampling())
    assert tokens.shape == (2, 5, 9)
    assert (tokens[:, :, :3] == prefix[:, None]).all()
    assert len({tuple(row) for row in tokens[0].tolist()}) > 1
    assert tokens.min() >= 0
    assert tokens.max() < 11


def test_greedy_decoding_takes_the_likeliest_token_each_time() -> None:
    model = random_model(AR)
    tokens = completed(model, EMPTY, 1, Sampling(temperature=0, precision="float32"))[0]
    with torch.inference_mode():
        assert torch.equal(model(tokens).argmax(-1), tokens)


def test_top_k_keeps_no_more_where_logits_are_equal() -> None:
    left = probabilities(torch.tensor([[3.0, 2, 2, 2, 2]]), Sampling(top_k=2))
    assert sorted(left[0].tolist())[:3] == [0, 0, 0]
    assert left[0, 0].item() == pytest.approx(torch.tensor([3.0, 2]).softmax(0)[0].item())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 12),
    p=st.floats(0.01, 1),
    temperature=st.floats(0.1, 5),
)
def test_the_filters_keep_the_likeliest_tokens(
    seed: int, k: int, p: float, temperature: float
) -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
    full = (logits / temperature).softmax(-1)
    for row, left in zip(full, probabilities(logits, Sampling(temperature, top_k=k)), strict=True):
        assert (left > 0).sum() == min(k, 9)
        assert set(left.nonzero().flatten().tolist()) == set(row.topk(min(k, 9)).indices.tolist())
    for row, left in zip(full, probabilities(logits, Sampling(temperature, top_p=p)), strict=True):
        kept = row[left > 0]
        assert kept.sum() >= p - 1e-5
        assert kept.sum() - kept.min() < p + 1e-5
        assert left.sum().item() == pytest.approx(1, abs=1e-5)


def test_tokens_are_drawn_by_their_weight_and_never_with_none() -> None:
    weights = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draw(weights.expand(1000, -1), uniforms)
    assert torch.bincount(tokens, minlength=6).tolist() == [0, 500, 0, 250, 250, 0]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights.expand(2, -1), edges).tolist() == [1, 4]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}]
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad)).replace("_", "-")):
        Sampling(**bad)  # type: ignore[arg-type]


def test_bert_and_a_whole_picture_cannot_be_completed() -> None:
    with pytest.raises(UserError, match="BERT"):
        completed(random_model(BERT), EMPTY, 1, Sampling())
    with pytest.raises(UserError, match="nothing to complete"):
        completed(random_model(AR), torch.zeros(1, 9, dtype=torch.long), 1, Sampling())


def test_a_model_whose_logits_are_not_finite_paints_nothing() -> None:
    model = random_model(AR)
    model.head.weight.data[3] = torch.inf
    with pytest.raises(UserError, match="logits are not finite"):
        completed(model, EMPTY, 1, Sampling())


def test_the_pictures_of_a_model_that_knows_nothing_are_noise() -> None:
    tokens = completed(ImageGPT(AR), EMPTY, 500, Sampling(precision="float32"))[0]  # [500, 9]
    for some, others in ((tokens[:, 1:], tokens[:, :-1]), (tokens[1:], tokens[:-1])):
        assert (some == others).float().mean().item() == pytest.approx(1 / 11, abs=0.02)
    for column in tokens.T:
        counts = column.bincount(minlength=11)
        assert (counts - 500 / 11).abs().max() < 4 * math.sqrt(500 / 11)
