"""What is done for a GPU, told where there may be none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

import igpt.device as device_room
from igpt.checkpoint import RunDirectory
from igpt.classify import HeadClassifier
from igpt.config import PRECISIONS, ModelConfig, TrainConfig, UserError
from igpt.data.loader import Batch, Loader, prefetch
from igpt.decoders import ReplayedDecoder
from igpt.device import (
    compile_training,
    compute_dtype,
    join_device,
    record_step,
    replay_batches,
    replays_steps,
    reuse_memory,
    to_device,
    total_memory,
)
from igpt.evaluate import BATCH, picture_nats, pixel_nats
from igpt.model import ImageGPT
from igpt.objectives import AR, BERT
from igpt.order import Codec
from igpt.palette import Palette
from igpt.probe.features import Extractor, extract, make_pool
from igpt.train import Trainer, Validation
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


def test_the_processor_does_not_wait_for_a_gpu_that_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("igpt.device.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: pytest.fail("it was pinned"))
    held = torch.zeros(3)
    assert to_device(held, torch.device("cpu")) is held


def test_a_precision_is_one_of_those_that_there_are() -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    for word in ("float8", "int8", "Float32", ""):
        with pytest.raises(UserError, match=f"one of {', '.join(PRECISIONS)}, got '{word}'"):
            compute_dtype(word, cpu)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_bfloat16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, device: str, has: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: has or including_emulation
    )
    monkeypatch.setattr("torch.cuda.device", lambda _: nullcontext())
    expected = torch.bfloat16 if has else torch.float32
    assert compute_dtype("auto", torch.device(device)) == expected


def test_steps_are_recorded_for_a_gpu_alone_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("IGPT_GRAPHS", raising=False)
    assert replays_steps(torch.device("cuda", 1))
    assert not replays_steps(torch.device("cpu"))
    monkeypatch.setenv("IGPT_GRAPHS", "0")
    assert not replays_steps(torch.device("cuda", 1))


def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"more processes than GPUs on this machine, which has 2"):
        join_device(2)


@pytest.mark.parametrize(("switch", "kept"), [(None, True), ("1", True), ("0", False)])
def test_freed_memory_is_kept_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, switch: str | None, kept: bool
) -> None:
    asked: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda name, value: asked.append((name, value)))
    monkeypatch.setattr("igpt.device.ctypes.CDLL", lambda _: library)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("IGPT_REUSE_MEMORY", raising=False)
    if switch is not None:
        monkeypatch.setenv("IGPT_REUSE_MEMORY", switch)
    reuse_memory()
    assert [name for name, _ in asked] == [-1, -3] * kept


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, recorded: list[Tensor]) -> list[Tensor]:
    """Results of what was recorded, where the processor replays batches.

    While it records and replays nothing is drawn or brought from elsewhere, as no graph would.
    """
    record = device_room.record_step

    def strictly(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        def strict_step() -> Tensor:
            with pytest.MonkeyPatch.context() as patch:
                for name in ("torch.rand", "torch.randperm", "torch.Tensor.to"):
                    patch.setattr(name, lambda *_, name=name, **__: pytest.fail(name))
                return step()

        return record(strict_step, device)

    monkeypatch.setattr("igpt.device.record_step", strictly)
    monkeypatch.setattr("igpt.device.replays_steps", lambda _: True)
    return recorded


def test_batches_of_a_shape_that_comes_again_are_replayed(as_on_a_gpu: list[Tensor]) -> None:
    cpu = torch.device("cpu")

    def double(x: Tensor, y: Tensor) -> Tensor:
        return 2 * x + y

    fast = replay_batches(double, cpu, alone=True)
    batches = [torch.randn(n, 3) for n in (4, 4, 4, 4, 2, 4)]
    found = [fast(x, torch.ones(3)) for x in batches]
    for x, result in zip(batches, found, strict=True):  # none overwritten by the next
        assert torch.equal(result, 2 * x + 1)
    assert [len(place) for place in as_on_a_gpu] == [4]  # the last batch of a set is not worth it
    assert replay_batches(double, cpu, alone=False) is double


def everything(model: ImageGPT) -> list[Tensor]:
    """Scores, features and classes of a set of five batches, the last not full."""
    tokens = torch.randint(11, (4 * BATCH + 3, 9), generator=torch.Generator().manual_seed(0))
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (11, 3)).astype(np.float32))
    codec = Codec(palette, "snake", 3)
    pools = [make_pool(name, codec) for name in ("mean", "last", "flatten", "grid:2")]
    features = [np.concatenate(list(extract(model, tokens, [0, 1], pool))) for pool in pools]
    extractor = Extractor(model, codec, pools[-1], {"both": (0, 1)}, torch.float32)
    objective = AR() if model.config.causal else BERT(0.5, 0, "evaluate")
    return [
        picture_nats(model, objective, tokens, BATCH),
        pixel_nats(model, tokens, BATCH),
        *map(torch.from_numpy, features),
        torch.from_numpy(HeadClassifier(model, ("a", "b", "c")).predict(tokens).probabilities),
        extractor.batch(tokens, 0)["both"].cpu(),
        extractor.batch(tokens[: 2 * BATCH], 4 * BATCH)["both"].cpu(),
    ]


both_objectives = pytest.mark.parametrize("causal", [True, False], ids=["ar", "bert"])


@both_objectives
def test_scores_features_and_classes_are_the_same_replayed(
    as_on_a_gpu: list[Tensor], monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    model = random_model(replace(CONFIG, causal=causal, n_classes=3)).eval()
    replayed = everything(model)
    assert len(as_on_a_gpu) >= 8
    as_on_a_gpu.clear()
    monkeypatch.setattr("igpt.device.replays_steps", lambda _: False)
    for ours, plain in zip(replayed, everything(model), strict=True):
        assert torch.equal(ours, plain)
    assert not as_on_a_gpu


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@needs_gpu
def test_a_gpu_replays_the_steps_of_the_model() -> None:
    model = random_model(CONFIG).cuda()
    tokens = (torch.arange(18).view(2, 9) % 11).cuda()
    decoder = ReplayedDecoder(model)
    with torch.inference_mode():
        expected = model(tokens)
        for start in (4, 6):  # other pictures, in the same place
            decoder.prefill(tokens[:, :start])
            decoder.select(torch.arange(2).cuda())
            decoder.step(tokens[:, start])
            logits = torch.stack([decoder.step(tokens[:, i]) for i in range(start + 1, 8)], dim=1)
            torch.testing.assert_close(logits, expected[:, start + 2 :], atol=1e-4, rtol=0)


@needs_gpu
@both_objectives
def test_a_gpu_scores_and_classifies_as_the_processor_does(causal: bool) -> None:
    model = random_model(replace(CONFIG, causal=causal, n_classes=3)).eval()
    expected = everything(model)
    for ours, theirs in zip(everything(model.cuda()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@needs_gpu
def test_a_step_is_recorded_while_another_thread_puts_a_batch_into_pinned_memory() -> None:
    """Which is a call that a recording of all threads' would not bear."""
    x, sizes = torch.ones(3, device="cuda"), iter((1_000_000, 9_000_000))  # none is there already

    with ThreadPoolExecutor() as pool:

        def step() -> Tensor:
            pool.submit(lambda: torch.empty(next(sizes)).pin_memory()).result()
            return 2 * x

        replay = record_step(step, x.device)
    x.fill_(5)
    assert replay().tolist() == [10, 10, 10]


def train_two_pictures(folder: Path, device: torch.device, **config: Any) -> Trainer:
    trainer = Trainer(
        random_model(CONFIG).to(device),
        AR(),
        TwoPictures(),
        TrainConfig(steps=12, batch_size=2, lr=0.01, warmup_steps=1, precision="float32", **config),
        RunDirectory(folder),
        lambda _: Validation({}, 0.0),
        lambda: None,
    )
    trainer.train(lambda _: None)
    return trainer


@needs_gpu
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_graphs_of_a_gpu_train_as_the_processor_does(
    tmp_path: Path, micro_batch_size: int | None
) -> None:
    expected = train_two_pictures(tmp_path / "cpu", torch.device("cpu"))
    found = train_two_pictures(
        tmp_path / "gpu", torch.device("cuda"), compile=True, micro_batch_size=micro_batch_size
    )
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-3, rtol=0)


def test_a_compiled_step_trains_as_the_plain_one_does(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    expected = train_two_pictures(tmp_path / "plain", cpu)
    found = train_two_pictures(tmp_path / "compiled", cpu, compile=True, micro_batch_size=1)
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("device", "alone", "mode"),
    [("cuda", True, "reduce-overhead"), ("cuda", False, None), ("cpu", True, None)],
)
def test_a_process_that_is_alone_with_its_gpu_records_training_steps(
    monkeypatch: pytest.MonkeyPatch, device: str, alone: bool, mode: str | None
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: asked.append((step, options)))
    compile_training(torch.sum, torch.device(device), alone)
    assert asked == [(torch.sum, {"mode": mode})]


def test_every_optimizer_step_lets_graphs_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however many micro-batches it has: the gradients of all lie in what graphs hold."""
    begun: list[bool] = []
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: begun.append(True))
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    cpu = torch.device("cpu")
    train_two_pictures(tmp_path / "compiled", cpu, compile=True, micro_batch_size=1)
    assert len(begun) == 12
    train_two_pictures(tmp_path / "not", cpu)
    assert len(begun) == 12


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
        [{"params": [first], "lr_scale": 0.5}, {"params": others, "lr_scale": 1.0}],
    )
    groups: list[dict[str, Any]] = trainer.optimizer.param_groups
    assert [group["fused"] for group in groups] == [True, True]


@pytest.mark.parametrize(("limit", "least"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_containers_memory_is_what_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, least: int | None
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr("igpt.device.CGROUP_MEMORY", tmp_path / "memory.max")
    assert total_memory() == (least or psutil.virtual_memory().total)
