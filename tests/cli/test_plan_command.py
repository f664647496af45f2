"""`igpt plan` through its entry point."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from conftest import assert_mistake
from igpt.cli.plan import EXAMPLE
from igpt.recipes import load_recipe


def test_the_example_says_what_igpt_xl_needs(igpt) -> None:
    result = igpt(*shlex.split(EXAMPLE)[1:])
    assert result.status == 0, result.err
    for line in ("parameters 6,810,875,904", "checkpoint, GB 81.73", "weights 27.24"):
        assert line in " ".join(result.out.split())
    assert result.out.splitlines()[-1].startswith("igpt pretrain igpt-xl-imagenet64 parallel.data=")


def test_small_and_large_numbers_are_readable(igpt) -> None:
    lines = igpt("plan", "digits", "--gpus", 1, "--gpu", "a100").out.splitlines()
    assert "under 0.001" in next(line for line in lines if line.startswith("days at"))
    huge = ("plan", "igpt-xl-imagenet64", "--gpus", 1, "--gpu", "h100", "--batch-size", 512)
    assert "e+0" not in igpt(*huge).out.split("FLOPs")[0]


def test_the_command_that_it_ends_with_is_of_the_recipe_that_was_planned(igpt) -> None:
    plan = ["plan", "igpt-s-imagenet32", "--gpus", 8, "--gpu", "h100"]
    plan += ["--batch-size", 1024, "train.activation_checkpointing=true"]
    words = shlex.split(igpt(*plan).out.splitlines()[-1])
    assert words[:3] == ["igpt", "pretrain", "igpt-s-imagenet32"]
    assert words[-2:] == ["--out", "RUN"]
    train = load_recipe(words[2], words[3:-2]).train
    division = json.loads(igpt(*plan, "--json").out)["fitting"]["division"]
    assert train.batch_size == 1024
    assert train.activation_checkpointing == division["checkpointing"]


def test_a_palette_that_is_given_is_planned_with(igpt, tmp_path: Path) -> None:
    np.save(tmp_path / "p16.npy", np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3))
    plan = ["plan", "igpt-s-imagenet32", "--gpus", 8, "--gpu", "h100", "--json"]
    of_512, of_16 = (
        json.loads(igpt(*plan, *words).out)["parameters"]
        for words in ([], ["--palette", tmp_path / "p16.npy"])
    )
    assert of_512 - of_16 == 2 * (512 - 16) * 512  # embeddings and head, of width 512
    assert_mistake(igpt(*plan, "--palette", tmp_path / "none.npy"), "no palette file")


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("name", ["igpt-s", "igpt-m", "igpt-l", "igpt-xl"])
def test_every_model_of_the_paper_is_planned_at_every_size(igpt, name: str, size: int) -> None:
    words = ["igpt-s-imagenet32", f"model.preset={name}", f"data.image_size={size}"]
    result = igpt("plan", *words, "--gpus", 64, "--gpu", "h100", "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    own, fitting = values["recipe"], values["fitting"]
    assert fitting["fits"]
    memory = own["memory_bytes"]
    assert memory.pop("total") == sum(memory.values())
    assert own["activations_bytes"]["checkpointed"] < own["activations_bytes"]["kept"]
    pictures = 1_000_000 * 128
    assert own["flops"] % pictures == 0
    assert own["days"] == pytest.approx(own["flops"] / (64 * 989e12 * 0.4) / 86_400)


def test_a_v100_computes_in_float32(igpt) -> None:
    """Its authors reported 2,500 V100-days for iGPT-L (docs/scaling.md)."""
    plan = ["plan", "igpt-l-imagenet32", "--gpus", 64, "--gpu", "v100"]
    values = json.loads(igpt(*plan, "--json").out)
    assert values["recipe"]["division"]["dtype"] == "float32"
    assert values["v100_days"] == {
        "planned": pytest.approx(64 * values["recipe"]["days"]),
        "reported": 2_500,
    }
    assert 1500 < values["v100_days"]["planned"] < 3500
    assert "(2,500 reported)" in igpt(*plan).out
    assert "reported" not in igpt("plan", "igpt-s-imagenet32", "--gpus", 8, "--gpu", "v100").out
    assert_mistake(igpt(*plan, "train.precision=bfloat16"), "no bfloat16")


def test_more_gpus_than_pictures_divide_the_mlps(igpt) -> None:
    plan = ["plan", "igpt-xl-imagenet64", "--gpu", "h100"]
    few = json.loads(igpt(*plan, "--gpus", 64, "--json").out)
    many = igpt(*plan, "--gpus", 256, "parallel.tensor=4", "--json")
    assert many.status == 0, many.err
    found = json.loads(many.out)
    assert 1 / 4 < found["fitting"]["days"] / few["fitting"]["days"] < 1
    assert_mistake(igpt(*plan, "--gpus", 256), "parallel.tensor makes groups")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpus", 0], "--gpus: must be at least 1"),
        (["--gpus", 48], "must be a multiple of 48 GPUs"),
        (["--gpus", 64, "parallel.shard=3"], "are not the 64 processes"),
        (["--gpus", 10, "parallel.tensor=5"], "must divide the 2048 hidden units"),
        (["--gpus", 64, "--utilisation", 2], "--utilisation"),
    ],
)
def test_what_cannot_be_is_a_mistake(igpt, words: list[object], complaint: str) -> None:
    assert_mistake(igpt("plan", "igpt-s-imagenet32", "--gpu", "h100", *words), complaint)


def test_days_of_a_v100_are_those_of_the_model_however_it_is_divided(igpt) -> None:
    words = ("plan", "igpt-l-imagenet32", "--gpus", 64, "--gpu", "h100", "--json")

    def days(*more: str) -> dict[str, float | None]:
        return json.loads(igpt(*words, *more).out)["v100_days"]

    as_it_is = days()
    assert as_it_is["reported"] == 2500
    assert days("parallel.tensor=2", "train.activation_checkpointing=true") == as_it_is
    other = days("model.n_layer=2")  # of which OpenAI told nothing
    assert other["planned"] < as_it_is["planned"] / 10
    assert other["reported"] is None
