"""What is done for a GPU, told where there may be none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from igpt.config import ModelConfig
from igpt.decode import CompiledDecoder
from igpt.device import replays_steps
from test_model import random_model

CONFIG = ModelConfig(n_layer=1, n_embd=16, n_head=2, vocab_size=11, n_positions=9)


def test_steps_are_compiled_for_a_gpu_alone() -> None:
    assert replays_steps(torch.device("cuda", 1))
    assert not replays_steps(torch.device("cpu"))


def test_a_decoders_step_is_one_graph_that_a_gpu_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    stays: list[Tensor] = []
    begun: list[bool] = []

    def replayed(step: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
        """As CUDA graphs do it: every result is in the same place."""
        asked.append(options)
        place = torch.empty(2, CONFIG.vocab_size)
        return lambda *args: place.copy_(step(*args))

    monkeypatch.setattr(torch, "compile", replayed)
    monkeypatch.setattr("torch._dynamo.mark_static_address", stays.append)
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: begun.append(True))
    model, tokens = random_model(CONFIG), torch.arange(18).view(2, 9) % 11
    decoder = CompiledDecoder(model)
    with torch.inference_mode():
        expected = model(tokens)
        for start in (4, 6):  # other pictures, in the same place
            decoder.prefill(tokens[:, :start])
            logits = torch.stack([decoder.step(tokens[:, i]) for i in range(start, 8)], dim=1)
            torch.testing.assert_close(logits, expected[:, start + 1 :], atol=1e-5, rtol=0)
    assert asked == [{"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}]
    cache = (1, 2, 2, 9, 8)  # [L, B, H, S, D], of keys and of values; and the position
    assert [tuple(tensor.shape) for tensor in stays] == [cache, cache, (1,)]
    assert len(begun) == 4 + 2
