"""Decoders against the model itself: each pixel's logits, whatever computes them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import several
from conftest import silent, tiny_recipe
from igpt.attention import KVCache
from igpt.config import ModelConfig, UserError
from igpt.decoders import Decoder, PackedDecoder, PlainDecoder, ReplayedDecoder, new_decoder
from igpt.kernels.build import load
from igpt.kernels.decode import Backend, backends
from igpt.model import Block, ImageGPT
from igpt.objectives import AR, token_nats
from igpt.pipeline import load as load_pipeline
from igpt.pretrain import pretrain
from igpt.run_data import RunData, load_named
from igpt.sample import Sampling
from test_model import random_model
from test_sample import completed

pytestmark = pytest.mark.usefixtures("two_threads")

CONFIG = ModelConfig(n_layer=2, n_embd=64, n_head=2, vocab_size=27, n_positions=81)


def backends_of_lesser_processors() -> Iterator[Backend]:
    """The vectors as they are compiled where they are narrower than this processor's."""
    flags = torch.cpu.get_capabilities()
    for name, there in (
        ("x86-64", flags["architecture"] == "x86_64"),
        ("sandybridge", flags.get("avx")),
        ("haswell", flags.get("avx2")),
        ("skylake-avx512", flags.get("avx512_dq") and flags.get("avx512_vl")),
    ):
        if there and (library := load("decode_vectors", f"-march={name}")):
            yield replace(backends()[-1], name=name, library=library)


# Every way to decode: the name of a precision, and the backend on which it is computed.
EVERY_BACKEND = (*backends(), *backends_of_lesser_processors())
WAYS: list[tuple[str, Backend | None]] = [("float32", None)]  # None: the model itself
WAYS += [
    (str(kind).split(".")[1], backend) for backend in EVERY_BACKEND for kind in backend.cache_types
]
every_way = pytest.mark.parametrize(
    ("precision", "backend"),
    WAYS,
    ids=[f"{kind} {backend.name if backend else ''}" for kind, backend in WAYS],
)
needs_compiler = pytest.mark.skipif(not backends(), reason="no C++ compiler here")
# Largest difference of logits, whose standard deviation is about one, from those in float64. The
# model itself has up to 0.9e-5 in float32, like every way to decode.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.15, "int8": 0.3}


def lively(config: ModelConfig) -> ImageGPT:
    """A model whose logits spread: each is sure of something."""
    model = random_model(config)
    with torch.no_grad():
        model.head.weight.mul_(1 / model.head.weight.std() / config.n_embd**0.5)
    return model


def decoder_of(model: ImageGPT, precision: str, backend: Backend | None) -> Decoder:
    if backend is None:
        return PlainDecoder(model)
    return PackedDecoder(model, backend, getattr(torch, precision))


def test_each_precision_takes_the_fastest_path() -> None:
    if not backends():
        pytest.skip("no C++ compiler here")
    for precision, backend, dtype in (
        ("auto", backends()[0], torch.bfloat16),
        ("bfloat16", backends()[0], torch.bfloat16),
        ("int8", backends()[0], torch.int8),
        ("float32", backends()[-1], torch.float32),  # tiles do not multiply it
    ):
        decoder = new_decoder(lively(CONFIG), precision)
        assert isinstance(decoder, PackedDecoder)
        assert decoder.weights.backend is backend
        assert decoder.weights.dtype == dtype


def test_a_kernel_does_not_take_what_computes_something_else() -> None:
    class Another(ImageGPT):
        pass

    class Gated(Block):
        pass

    model = random_model(CONFIG)
    assert PackedDecoder.takes(model) == bool(backends())
    assert not PackedDecoder.takes(Another(CONFIG))
    model.blocks[0] = Gated(CONFIG, 0)
    assert not PackedDecoder.takes(model)


@every_way
@settings(max_examples=5, deadline=None)
@given(
    n_head=st.integers(1, 3),
    width=st.sampled_from([32, 64, 96]),
    n_layer=st.integers(1, 3),
    pictures=st.integers(1, 4),
    continued=st.integers(1, 41),
    prefix=st.integers(0, 80),
    seed=st.integers(0, 2**16),
)
@example(n_head=1, width=128, n_layer=1, pictures=2, continued=3, prefix=60, seed=0)
@example(n_head=1, width=192, n_layer=1, pictures=2, continued=3, prefix=60, seed=0)
def test_every_step_gives_the_logits_of_the_whole_model(
    precision: str,
    backend: Backend | None,
    n_head: int,
    width: int,
    n_layer: int,
    pictures: int,
    continued: int,
    prefix: int,
    seed: int,
) -> None:
    config = replace(CONFIG, n_layer=n_layer, n_head=n_head, n_embd=n_head * width)
    model = lively(config)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(27, (pictures, 81), generator=generator)
    rows = torch.randint(pictures, (continued,), generator=generator)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(tokens)  # [B, T, K]
        decoder = decoder_of(model, precision, backend)
        found = decoder.prefill(tokens[:, :prefix])
        assert (found - expected[:, prefix]).abs().max() < TOLERANCE[precision]
        decoder.select(rows)
        for position in range(prefix + 1, min(prefix + 9, 81)):
            found = decoder.step(tokens[rows, position - 1])
            assert found.shape == (continued, 27)
            assert (found - expected[rows, position]).abs().max() < TOLERANCE[precision]


def test_a_replayed_step_gives_the_logits_of_the_whole_model_and_is_recorded_once_a_room(
    recorded: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.decoders.ROOM", 20)
    model = lively(CONFIG)
    decoder = ReplayedDecoder(model)
    generator = torch.Generator().manual_seed(0)
    for prefix in (0, 40, 7):
        tokens = torch.randint(27, (2, 81), generator=generator)
        rows = torch.tensor([1, 0, 1])
        with torch.inference_mode():
            expected = model(tokens)  # [B, T, K]
            found = decoder.prefill(tokens[:, :prefix])
            assert (found - expected[:, prefix]).abs().max() < TOLERANCE["float32"]
            decoder.select(rows)
            for position in range(prefix + 1, 81):
                found = decoder.step(tokens[rows, position - 1])
                assert (found - expected[rows, position]).abs().max() < TOLERANCE["float32"]
    assert len(recorded) == 5  # of 20, 40, 60, 80 and 81 positions


def test_steps_are_recorded_anew_for_another_number_of_pictures(recorded: list[Tensor]) -> None:
    model, tokens = lively(CONFIG), torch.randint(27, (3, 81))
    decoder = ReplayedDecoder(model)
    for rows in ([0, 1], [2, 0], [0, 1, 2]):
        with torch.inference_mode():
            decoder.prefill(tokens[:, :5])
            decoder.select(torch.tensor(rows))
            first = decoder.step(tokens[rows, 5])
            second = decoder.step(tokens[rows, 6])
            for found, position in ((first, 6), (second, 7)):  # the first is not overwritten
                expected = model(tokens[rows])[:, position]
                assert (found - expected).abs().max() < TOLERANCE["float32"]
    assert [len(result) for result in recorded] == [2, 3]


def test_pictures_of_a_replayed_step_are_those_of_the_plain_one(
    recorded: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, exact = lively(CONFIG), Sampling(seed=5, precision="float32")
    prefix = torch.randint(27, (3, 40), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("igpt.decoders.backends", lambda: ())
    assert isinstance(new_decoder(model, "float32"), PlainDecoder)
    plain = completed(model, prefix, 4, exact)
    monkeypatch.setattr("igpt.decoders.replays_steps", lambda device: device == model.wte.device)
    assert isinstance(new_decoder(model, "float32"), ReplayedDecoder)
    assert not recorded
    assert torch.equal(completed(model, prefix, 4, exact, together=6), plain)
    assert len(recorded) == 1  # both batches went through it


@every_way
def test_a_whole_picture_passes_every_boundary_of_the_cache(
    precision: str, backend: Backend | None
) -> None:
    model = lively(replace(CONFIG, n_positions=144))
    tokens = torch.randint(27, (3, 144), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, decoder = model(tokens), decoder_of(model, precision, backend)
        decoder.prefill(tokens[:, :0])
        decoder.select(torch.arange(3))
        for position in range(1, 144):
            found = decoder.step(tokens[:, position - 1])
            assert (found - expected[:, position]).abs().max() < TOLERANCE[precision], position


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageGPT, Tensor]:
    """A model that learned something of the digits, and some that were held out [64, T]."""
    run = tmp_path_factory.mktemp("decoders") / "run"
    wide = ("model.n_embd=64", "model.n_head=2")  # what the kernels are made for
    words = ("train.steps=60", "train.lr=0.01", "train.batch_size=16", "train.eval_every=60")
    pretrain(tiny_recipe(*wide, *words), run, resume=False, say=silent)
    pipeline = load_pipeline(run)
    held_out = load_named(RunData.of(run).pictures(), pipeline).images[:64]
    return pipeline.model.cpu(), pipeline.tokens(held_out).long()


@every_way
def test_pictures_are_worth_the_same_nats_a_pixel_at_a_time(
    precision: str, backend: Backend | None, trained: tuple[ImageGPT, Tensor]
) -> None:
    """Of each picture, since over many what rounding takes and gives cancels."""
    model, tokens = trained
    decoder = decoder_of(model, precision, backend)
    with torch.inference_mode():
        expected = AR()(model, tokens)  # [B], in one pass
        logits = [decoder.prefill(tokens[:, :0])]
        decoder.select(torch.arange(len(tokens)))
        logits += [decoder.step(tokens[:, i]) for i in range(tokens.shape[1] - 1)]
        found = token_nats(torch.stack(logits, dim=1), tokens).mean(dim=1)
    assert expected.mean() < 1.8  # of the 2.83 that it began with
    # In 8 bits the worst is 0.0007 off, in 6 it would be 0.004.
    assert (found - expected).abs().max() < (1e-5 if precision == "float32" else 0.0025)


@every_way
def test_large_activations_stay_finite_and_right(precision: str, backend: Backend | None) -> None:
    """Where the exponential of the activation overflows."""
    model = lively(CONFIG)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc.weight.mul_(1000)
            block.mlp.proj.weight.div_(1000)
    tokens = torch.randint(27, (2, 81), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, decoder = model(tokens), decoder_of(model, precision, backend)
        decoder.prefill(tokens[:, :60])
        decoder.select(torch.arange(2))
        for position in range(61, 81):
            found = decoder.step(tokens[:, position - 1])
            worst = (found - expected[:, position]).abs().max()
            assert worst < TOLERANCE[precision], position


@pytest.fixture(scope="module", params=[0, -2], ids=["evenly", "at one pixel"])
def long_look(request: pytest.FixtureRequest) -> tuple[ImageGPT, Tensor, Tensor]:
    """A model, a long picture of one colour but for a pixel, and its last logits.

    Its last pixel looks at all evenly, the most that sums of whole numbers have to hold; or most at
    that pixel, which leaves the others half a unit of 16 bits each: gone, if all are rounded alike.
    """
    model = lively(replace(CONFIG, n_layer=1, n_positions=4096))
    with torch.no_grad():
        model.wpe.zero_()
        model.blocks[0].attn.qkv.weight[: CONFIG.n_embd].mul_(request.param)  # queries
    tokens = torch.full((1, 4096), 5)
    tokens[0, 7] = 3
    with torch.inference_mode():
        return model, tokens, model(tokens)[:, -1]


@pytest.mark.parametrize("backend", EVERY_BACKEND, ids=lambda backend: backend.name)
def test_whole_numbers_weigh_many_positions(
    backend: Backend, long_look: tuple[ImageGPT, Tensor, Tensor]
) -> None:
    model, tokens, expected = long_look
    decoder = PackedDecoder(model, backend, torch.int8)
    with torch.inference_mode():
        decoder.prefill(tokens[:, :-2])
        decoder.select(torch.arange(1))
        found = decoder.step(tokens[:, -2])
    assert (found - expected).abs().max() < 0.07  # without rounding at several heights: 0.088


@every_way
def test_a_picture_does_not_depend_on_those_beside_it(
    precision: str, backend: Backend | None
) -> None:
    model = lively(CONFIG)
    tokens = torch.randint(27, (13, 81), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(pictures: Tensor) -> Tensor:
        decoder = decoder_of(model, precision, backend)
        decoder.prefill(pictures[:1, :40])
        decoder.select(torch.zeros(len(pictures), dtype=torch.long))
        return torch.stack([decoder.step(pictures[:, i]) for i in range(40, 48)])

    together = logits(tokens)
    for start, end in ((0, 1), (1, 3), (3, 6), (6, 13)):
        alone = logits(torch.cat((tokens[:1], tokens[start:end])))[:, 1:]
        if backend is None:  # PyTorch orders sums by how many rows a product has
            torch.testing.assert_close(alone, together[:, start:end], rtol=0, atol=1e-5)
        else:
            assert torch.equal(alone, together[:, start:end])


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_same_seed_gives_the_same_pictures_whatever_the_batch_size(precision: str) -> None:
    model, sampling = lively(CONFIG), Sampling(seed=5, precision=precision)
    prefix = torch.randint(27, (3, 40), generator=torch.Generator().manual_seed(0))
    whole = completed(model, prefix, 12, sampling)
    for batch_size in (1, 5, 36):
        assert torch.equal(whole, completed(model, prefix, 12, sampling, together=batch_size))
    assert torch.equal(whole[:1], completed(model, prefix[:1], 12, sampling))


@pytest.mark.parametrize("backend", EVERY_BACKEND, ids=lambda backend: backend.name)
def test_the_same_seed_gives_the_same_pictures_whatever_the_layout_of_the_cache(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, exact = lively(CONFIG), Sampling(seed=5, precision="float32")
    prefix = torch.randint(27, (3, 40), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("igpt.decoders.backends", lambda: (backend,))
    assert isinstance(new_decoder(model, "float32"), PackedDecoder)
    packed = completed(model, prefix, 4, exact)
    monkeypatch.setattr("igpt.decoders.backends", lambda: ())
    assert isinstance(new_decoder(model, "float32"), PlainDecoder)
    assert torch.equal(completed(model, prefix, 4, exact), packed)


@needs_compiler
def test_what_is_given_is_read_in_one_pass_and_once_for_all_its_completions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[torch.Size] = []
    blocks = ImageGPT._run_blocks

    def counted(self: ImageGPT, h: Tensor, cache: KVCache | None = None) -> Tensor:
        computed.append(h.shape)
        return blocks(self, h, cache)

    monkeypatch.setattr(ImageGPT, "_run_blocks", counted)
    prefix = torch.randint(27, (2, 40), generator=torch.Generator().manual_seed(0))
    completed(lively(CONFIG), prefix, 6, Sampling())
    assert computed == [(1, 41, 64)] * 2  # each with the start token; the kernel paints the rest


@needs_compiler
def test_the_callers_default_type_changes_no_picture() -> None:
    model, sampling = lively(CONFIG), Sampling(seed=5)
    prefix = torch.randint(27, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = completed(model, prefix, 3, sampling)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(completed(model, prefix, 3, sampling), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_logits_are_the_same_to_the_bit_whatever_the_batch_size(precision: str) -> None:
    """At the sizes of a real model, where a draw that falls between two logits is no rarity."""
    config = ModelConfig(n_layer=3, n_embd=128, n_head=4, vocab_size=512, n_positions=1024)
    model = lively(config)
    tokens = torch.randint(512, (19, 1024), generator=torch.Generator().manual_seed(0))
    decoder = new_decoder(model, precision)

    def logits(pictures: Tensor) -> Tensor:
        first = decoder.prefill(pictures[:, :300])
        decoder.select(torch.arange(len(pictures)))
        return torch.stack([first, *(decoder.step(pictures[:, i]) for i in range(300, 340))])

    with torch.inference_mode():
        together = logits(tokens)  # [steps, B, K]
        for start, end in ((0, 1), (1, 3), (3, 7), (7, 15), (15, 19)):
            assert torch.equal(logits(tokens[start:end]), together[:, start:end])


@pytest.mark.parametrize(
    "change",
    [{"activation": "gelu"}, {"bias": True}, {"n_head": 4}, {"n_embd": 48, "n_head": 1}],
    ids=["another activation", "biases", "narrow heads", "an odd width"],
)
def test_what_the_kernels_are_not_made_for_takes_the_plain_path(change: dict[str, object]) -> None:
    model = lively(replace(CONFIG, **change))  # type: ignore[arg-type]
    for precision in ("auto", "bfloat16"):
        assert isinstance(new_decoder(model, precision), PlainDecoder)
        tokens = completed(model, torch.zeros(1, 70, dtype=torch.long), 2, Sampling())
        assert tokens.shape == (1, 2, 81)
        assert {weights.dtype for weights in model.parameters()} == {torch.float32}
    with pytest.raises(UserError, match="weights of 8 bits need"):
        new_decoder(model, "int8")


def test_an_unknown_precision_is_refused(igpt, tiny_run: Path) -> None:
    with pytest.raises(UserError, match="precision must be one of"):
        Sampling(precision="float8")
    result = igpt("sample", tiny_run, "--precision", "float8")
    assert result.status == 2


SWITCHED_OFF = """
import torch
from igpt.config import ModelConfig
from igpt.decoders import PackedDecoder
from igpt.model import ImageGPT
print(PackedDecoder.takes(ImageGPT(ModelConfig(n_layer=1, n_embd=32, n_head=1, vocab_size=8,
                                             n_positions=16))))
"""


def test_the_switch_turns_the_kernels_off() -> None:
    assert several.script(SWITCHED_OFF, IGPT_KERNELS="0").out.strip() == "False"


@every_way
def test_caches_are_let_go_before_others_take_their_room(
    precision: str, backend: Backend | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(CONFIG)
    tokens = torch.randint(27, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoder = decoder_of(model, precision, backend)
        decoder.prefill(tokens)
        decoder.select(torch.tensor([0, 1, 1]))
        old = weakref.ref(decoder.cache)
        new_cache = ImageGPT.new_cache
        gone: list[bool] = []

        def look(self: ImageGPT, *args: Any) -> KVCache:
            gone.append(old() is None)
            return new_cache(self, *args)

        monkeypatch.setattr(ImageGPT, "new_cache", look)
        decoder.prefill(tokens)
    assert gone
    assert all(gone)
