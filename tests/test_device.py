"""What is done for a GPU, told where there may be none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from igpt.checkpoint import RunDirectory
from igpt.config import PRECISIONS, ModelConfig, TrainConfig, UserError
from igpt.data import Batch, Loader, prefetch
from igpt.decode import CompiledDecoder
from igpt.device import compute_dtype, replays_steps
from igpt.objectives import AR
from igpt.train import ParameterGroup, Trainer, Validation
from test_model import random_model

CONFIG = ModelConfig(n_layer=1, n_embd=16, n_head=2, vocab_size=11, n_positions=9)


class TwoPictures(Loader):
    """Batches of the same two pictures and their labels."""

    def batch(self, step: int, rows: range) -> Batch:
        tokens, labels = torch.zeros(2, 9, dtype=torch.long), torch.tensor([0, 1])
        return Batch(tokens, labels, step, rows)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What lies in pinned memory, in the order in which it was put there."""
    found: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        found.append(tensor.clone())
        return found[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_lie_in_pinned_memory_if_there_is_a_gpu(
    pinned: list[Tensor], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.device.default_device", lambda: torch.device(device))
    (coming,) = prefetch(TwoPictures(), range(1), range(2))
    batch = coming.result()
    assert batch.labels is not None
    for tensor in (batch.tokens, batch.labels):
        assert any(tensor is other for other in pinned) == (device == "cuda")


def test_a_precision_is_one_of_those_that_there_are() -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    for word in ("float8", "int8", "Float32", ""):
        with pytest.raises(UserError, match=f"one of {', '.join(PRECISIONS)}, got '{word}'"):
            compute_dtype(word, cpu)


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


def test_adam_takes_all_weights_at_once(tmp_path: Path) -> None:
    """Fused: few kernels to start, however many tensors there are."""
    model = random_model(CONFIG)
    first, *others = model.parameters()
    trainer = Trainer(
        model,
        AR(),
        TwoPictures(),
        TrainConfig(steps=1, batch_size=2),
        RunDirectory(tmp_path / "run"),
        lambda _: Validation({}, 0.0),
        lambda: None,
        [ParameterGroup([first], 0.5), ParameterGroup(others)],
    )
    groups: list[dict[str, Any]] = trainer.optimizer.param_groups
    assert [group["fused"] for group in groups] == [True, True]
