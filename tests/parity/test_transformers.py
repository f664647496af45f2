"""The installed `transformers` reads what we save, computes the same, and we read what it saves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import igpt
from conftest import load_model, silent
from igpt.config import ACTIVATIONS, ModelConfig, UserError
from igpt.finetune import finetune, finetune_recipe
from igpt.folder import save_model
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.palette import Palette
from igpt.recipes import with_overrides
from igpt.sample import Sampling
from parity.differences import assert_agree
from test_sample import completed

transformers = pytest.importorskip("transformers")


def random_model(config: ModelConfig, seed: int = 0) -> ImageGPT:
    """A model in which no weight is zero, so that a dropped or swapped one shows."""
    model = ImageGPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_codec(k: int, size: int) -> Codec:
    clusters = np.random.default_rng(k).uniform(-1, 1, (k, 3)).astype(np.float32)
    return Codec(Palette(clusters), "raster", size)


def their_logits(theirs: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of every token: the start token goes first and the last token never enters."""
    start = torch.full((len(tokens), 1), theirs.config.vocab_size - 1)
    with torch.inference_mode():
        return theirs(input_ids=torch.cat((start, tokens[:, :-1]), dim=1)).logits


@settings(max_examples=8, deadline=None)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([4, 8, 16]),
    vocab=st.integers(2, 40),
    size=st.integers(2, 6),
    bias=st.booleans(),
)
def test_a_saved_model_gives_the_same_logits_in_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    n_layer: int,
    n_head: int,
    width: int,
    vocab: int,
    size: int,
    bias: bool,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(n_layer, n_head, n_head * width, vocab, size * size, bias=bias)
    ours = random_model(config)
    save_model(folder, ours, random_codec(vocab, size))
    theirs, info = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.randint(vocab, (3, size * size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert_agree(
            "here to transformers, next pixel", ours(tokens), their_logits(theirs.eval(), tokens)
        )


def theirs_saved(folder: Path, config: object, kind: str, seed: int = 0) -> torch.nn.Module:
    """A model of `transformers` with random weights everywhere, its processor beside it."""
    theirs = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(folder)
    codec = random_codec(config.vocab_size - 1, round(config.n_positions**0.5))
    transformers.ImageGPTImageProcessor(clusters=codec.palette.clusters).save_pretrained(folder)
    return theirs


@settings(max_examples=20, deadline=None)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.sampled_from([1, 2, 3]),
    width=st.sampled_from([4, 8]),
    vocab=st.integers(2, 30),
    size=st.integers(2, 5),
    tied=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    scaled=st.booleans(),
    by_layer=st.booleans(),
    upcast=st.booleans(),
)
def test_a_model_saved_by_transformers_gives_the_same_logits_here(
    tmp_path_factory: pytest.TempPathFactory,
    n_layer: int,
    n_head: int,
    width: int,
    vocab: int,
    size: int,
    tied: bool,
    activation: str,
    scaled: bool,
    by_layer: bool,
    upcast: bool,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    config = transformers.ImageGPTConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_head * width,
        vocab_size=vocab + 1,
        n_positions=size * size,
        tie_word_embeddings=tied,
        activation_function=activation,
        scale_attn_weights=scaled,
        scale_attn_by_inverse_layer_idx=by_layer,
        reorder_and_upcast_attn=upcast,
    )
    theirs = theirs_saved(folder, config, "ImageGPTForCausalImageModeling")
    ours, _ = load_model(folder)
    tokens = torch.randint(vocab, (2, size * size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # Tied to the embeddings, theirs has a logit for the start token too, which is no colour.
        expected = their_logits(theirs, tokens)[..., :vocab]
        assert_agree("transformers to here, next pixel", ours(tokens), expected)
    again = folder / "again"
    save_model(again, ours, random_codec(vocab, size))
    resaved = transformers.ImageGPTForCausalImageModeling.from_pretrained(again).eval()
    assert_agree(
        "transformers to here and back, next pixel",
        their_logits(resaved, tokens),
        ours(tokens).detach(),
    )


CONFIG = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 12, "n_positions": 16}


def random_tokens(n: int = 3) -> torch.Tensor:
    return torch.randint(11, (n, 16), generator=torch.Generator().manual_seed(1))


def test_their_classifier_reads_unshifted_tokens_and_so_does_ours_of_it(tmp_path: Path) -> None:
    config = transformers.ImageGPTConfig(**CONFIG, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    theirs = theirs_saved(tmp_path, config, "ImageGPTForImageClassification")
    with pytest.warns(UserWarning, match="no head for the next pixel"):
        pipeline = igpt.load(tmp_path)
    assert pipeline.class_names == ("a", "b", "c")
    model, tokens = pipeline.model.cpu(), random_tokens()
    with torch.inference_mode():
        ours = model.classify(model.trunk(tokens))
        assert_agree("their classifier here", ours, theirs(input_ids=tokens).logits)
    pixels = np.zeros((1, pipeline.image_size, pipeline.image_size, 3), np.uint8)
    for ask in (pipeline.nll, pipeline.surprise, lambda _: pipeline.sample(1)):
        with pytest.raises(UserError, match="predicts no next pixel"):
            ask(pixels)
    recipe = with_overrides(finetune_recipe(tmp_path), ["data.source=digits"], "test")
    with pytest.raises(UserError, match="gen_weight=0 trains its classes alone"):
        finetune(recipe, tmp_path / "run", resume=False, say=silent)


def test_a_classifier_of_ours_is_theirs_with_the_start_token_first(tmp_path: Path) -> None:
    ours, codec = random_model(ModelConfig(2, 2, 16, 11, 16, n_classes=3)), random_codec(11, 4)
    save_model(tmp_path, ours, codec, ("cat", "dog", "emu"))
    theirs, info = transformers.ImageGPTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
    tokens = random_tokens()
    with torch.inference_mode():
        assert_agree(
            "our classifier there",
            ours.classify(ours.trunk(tokens)),
            their_logits(theirs.eval(), tokens),
        )
    # And it still paints here.
    assert torch.equal(load_model(tmp_path)[0].head.weight, ours.head.weight)


def test_an_unshifted_classifier_works_in_their_pipeline(tmp_path: Path) -> None:
    config = ModelConfig(2, 2, 16, 11, 64, n_classes=3, shift=False)
    ours, codec = random_model(config), random_codec(11, 8)
    save_model(tmp_path, ours, codec, ("cat", "dog", "emu"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    theirs = {row["label"]: row["score"] for row in classify(Image.fromarray(pixels), top_k=3)}
    found = igpt.load(tmp_path).predict(pixels).probabilities[0]
    assert [theirs[name] for name in ("cat", "dog", "emu")] == pytest.approx(found, abs=1e-5)


def test_a_base_model_gives_features(tmp_path: Path) -> None:
    config = transformers.ImageGPTConfig(**CONFIG)
    theirs = theirs_saved(tmp_path, config, "ImageGPTModel")
    with pytest.warns(UserWarning, match="only features"):
        ours, _ = load_model(tmp_path)
    tokens = random_tokens()
    start = torch.full((len(tokens), 1), 11)
    with torch.inference_mode():
        out = theirs(input_ids=torch.cat((start, tokens[:, :-1]), dim=1), output_hidden_states=True)
        *_, last = ours.features(tokens)
        assert_agree("their base model's features here", last, out.last_hidden_state)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shards", [True, False])
def test_weights_in_one_file_or_several_safe_or_not(
    tmp_path: Path, safe: bool, shards: bool
) -> None:
    theirs = theirs_saved(
        tmp_path, transformers.ImageGPTConfig(**CONFIG), "ImageGPTForCausalImageModeling"
    )
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    names = sorted(state)
    groups = [names[::2], names[1::2]] if shards else [names]
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    files = [f"{stem}-{i}.{suffix}" if shards else f"{stem}.{suffix}" for i in range(len(groups))]
    for file, group in zip(files, groups, strict=True):
        part = {name: state[name].clone() for name in group}
        if safe:
            save_file(part, tmp_path / file)
        else:
            torch.save(part, tmp_path / file)
    if shards:
        where = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    ours, _ = load_model(tmp_path)
    with torch.inference_mode():
        assert_agree(
            "files of every kind here", ours(random_tokens()), their_logits(theirs, random_tokens())
        )


def test_greedy_generation_is_theirs_token_for_token(tmp_path: Path) -> None:
    theirs = theirs_saved(
        tmp_path, transformers.ImageGPTConfig(**CONFIG), "ImageGPTForCausalImageModeling"
    )
    ours, _ = load_model(tmp_path)
    start = torch.full((1, 1), 11)
    expected = theirs.generate(input_ids=start, max_new_tokens=16, do_sample=False)[:, 1:]
    greedy = Sampling(temperature=0, precision="float32")
    found = completed(ours, torch.empty(1, 0, dtype=torch.long), 1, greedy)[0]
    assert found.tolist() == expected.tolist()


class Bomb:
    """Code in a pickle."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs_saved(tmp_path, transformers.ImageGPTConfig(**CONFIG), "ImageGPTForCausalImageModeling")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors"):
        load_model(tmp_path)
    assert "it ran" not in capsys.readouterr().out


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    for causal in (True, False):
        config = ModelConfig(2, 2, 16, 7, 16, n_classes=3, causal=causal)
        ours, codec = random_model(config), random_codec(7, 4)
        save_model(tmp_path, ours, codec)
        loaded, loaded_codec = load_model(tmp_path)
        assert loaded.config == config
        assert loaded_codec.palette == codec.palette
        for name, tensor in ours.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def other_architecture(kind: str) -> torch.nn.Module:
    if kind == "GPT-2":
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=12)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize(("kind", "name"), [("GPT-2", "gpt2"), ("ViT", "vit")])
def test_a_checkpoint_of_another_architecture_is_one_line(
    tmp_path: Path, kind: str, name: str
) -> None:
    other_architecture(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"model_type is '{name}'") as refusal:
        igpt.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_model_that_the_hub_does_not_give_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(UserError, match="nobody/nothing-here") as refusal:
            igpt.load("nobody/nothing-here", cache_dir=tmp_path, **options)
        assert "\n" not in str(refusal.value)
