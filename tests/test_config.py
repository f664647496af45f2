"""Recipes: what they may say, and what is said of a mistake in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.config import PRESETS, ModelChoice, Recipe, UserError
from igpt.recipes import differing_fields, load_recipe, parse_recipe, recipe_yaml, shipped_recipes

PAPERS = {
    "igpt-s-imagenet32": ("igpt-s", 32, 1_000_000, 128),
    "igpt-m-imagenet32": ("igpt-m", 32, 1_000_000, 128),
    "igpt-l-imagenet32": ("igpt-l", 32, 1_000_000, 128),
    "igpt-l-imagenet48": ("igpt-l", 48, 1_000_000, 128),
    "igpt-xl-imagenet64": ("igpt-xl", 64, 2_000_000, 64),
}


def test_the_recipes_of_the_readme_and_the_paper_are_shipped() -> None:
    assert set(shipped_recipes()) == {"digits", "fashion-mnist", "emoji32", "pictures32", *PAPERS}


@pytest.mark.parametrize(
    "text", ["2020_01", "007", "photos #1", "12:30", "yes", "a=b", "a: b", "[1]", "1e5", "~", " x"]
)
def test_text_is_taken_as_it_is_written_whatever_yaml_makes_of_it(text: str) -> None:
    recipe = load_recipe("digits", [f"data.source={text}", f"data.label_column={text}"])
    assert (recipe.data.source, recipe.data.label_column) == (text, text)
    assert parse_recipe(recipe_yaml(recipe), [], "test") == recipe
    assert load_recipe("digits", ["data.label_column=null"]).data.label_column is None


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_have_its_numbers(name: str) -> None:
    recipe, (preset, size, steps, batch_size) = load_recipe(name), PAPERS[name]
    assert (recipe.model.preset, recipe.data.image_size) == (preset, size)
    assert (recipe.train.steps, recipe.train.batch_size) == (steps, batch_size)
    assert recipe.palette.colors == 512
    assert recipe.train.betas == (0.9, 0.95)
    assert recipe.train.grad_clip is None
    assert recipe.data.validation_fraction == 0.04


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "emoji32", "pictures32", *PAPERS])
def test_a_recipe_begins_with_its_source_cost_expected_result_and_command(name: str) -> None:
    from igpt.recipes import recipe_text

    head = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    for word in ("source:", "cost:", "expected:", "command: igpt pretrain " + name):
        assert any(line.removeprefix("#").strip().startswith(word) for line in head), word


def test_a_preset_on_the_command_line_wins_over_sizes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {n_layer: 6, n_head: 4, n_embd: 128}\n")
    words = ["model.preset=igpt-mini", "model.n_layer=3"]
    assert load_recipe(str(path), words).model == ModelChoice("igpt-mini", n_layer=3)
    assert load_recipe(str(path), words[1:]).model == ModelChoice(n_layer=3, n_head=4, n_embd=128)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {lr: 1e-4, steps: 7}\norder: hilbert\n")
    recipe = load_recipe(str(path), ["train.lr=5e-5", "model.n_layer=3"])
    assert (recipe.train.lr, recipe.train.steps, recipe.order) == (5e-5, 7, "hilbert")
    assert recipe.train.betas == Recipe().train.betas
    assert recipe.model.resolve(4, 9, causal=True).n_layer == 3


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-6, 1, allow_nan=False),
    clip=st.none() | st.floats(0.1, 10),
    steps=st.integers(1, 10**7),
    preset=st.sampled_from(sorted(PRESETS)),
)
def test_a_resolved_recipe_reads_back_to_itself(
    lr: float, clip: float | None, steps: int, preset: str
) -> None:
    words = [f"train.lr={lr!r}", f"train.steps={steps}", f"model.preset={preset}"]
    words += [] if clip is None else [f"train.grad_clip={clip!r}"]
    recipe = parse_recipe("{}", words, "test")
    assert recipe.train.lr == lr
    assert parse_recipe(recipe_yaml(recipe), (), "test") == recipe


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.lrr=1", "unknown field 'train.lrr', expected one of: steps, batch_size"),
        ("foo=1", "unknown field 'foo'"),
        ("train.lr=fast", "train.lr"),
        ("train.lr=0", "train.lr must be positive"),
        ("train.steps=0", "train.steps must be at least 1"),
        ("train.micro_batch_size=5", "multiple of"),
        ("train.micro_batch_size=0", "train.micro_batch_size must be at least 1"),
        ("train.grad_clip=-1", "train.grad_clip must be positive"),
        ("train.betas=[2,-1]", "train.betas must lie in [0, 1)"),
        ("train.betas=[0.9]", "length 1"),
        ("model.n_layer=0", "model.n_layer must be at least 1"),
        ("objective=gan", "'ar', 'bert'"),
        ("data.augmentation=mixup", "imagenet"),
        ("model.preset=vit", "igpt-s"),
        ("palette.colors=0", "palette.colors"),
        ("palette.colors=70000", "palette.colors"),
        ("mask_probability=1", "mask_probability"),
        ("data.validation_fraction=0", "validation_fraction"),
        ("train", "train.lr=0.003"),
        ("train.betas=[0.9", "cannot read 'train.betas=[0.9'"),
        ("data.image_column=${x", "cannot read"),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("digits", [override])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "hello", "5", "train: 3", "train: {lr: [1]}"])
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fashion-mnist"):
        load_recipe("cifar")
    with pytest.raises(UserError, match="no recipe file"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_the_fields_that_differ_are_named() -> None:
    other = load_recipe("digits", ["train.lr=1", "order=column"])
    assert differing_fields(load_recipe("digits"), other) == ["order", "train.lr"]
    tuned = load_recipe("digits", ["finetune.freeze=1"])
    assert "finetune.freeze" in differing_fields(load_recipe("digits"), tuned)
    assert "finetune.freeze" in differing_fields(tuned, load_recipe("digits"))
