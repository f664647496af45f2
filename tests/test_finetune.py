"""Fine-tuning: the same loop, checkpoints and resumption, with classes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import igpt
from conftest import load_model, silent, tiny_recipe, write_classes
from igpt.config import FinetuneConfig, ModelConfig, Recipe, UserError
from igpt.data.decode import Decoded, encode_all
from igpt.data.labels import Labelled, open_training
from igpt.data.loader import Batch
from igpt.data.pictures import Pictures
from igpt.data.sources import open_data
from igpt.data.splits import pictures_to_test, training_splits
from igpt.finetune import class_weights, finetune, finetune_recipe, parameter_groups
from igpt.monitor import read_metrics
from igpt.objectives import AR, BERT, Generative, Joint
from igpt.pretrain import pretrain
from igpt.recipes import recipe_yaml, with_overrides
from test_model import AR as AR_CONFIG
from test_model import BERT as BERT_CONFIG
from test_model import random_model

FAST = (
    "train.steps=12",
    "train.batch_size=16",
    "train.eval_every=4",
    "train.checkpoint_every=4",
    "train.warmup_steps=2",
    "train.log_every=1",
    "train.lr=0.003",
)


def recipe(start: Path, *changes: str) -> Recipe:
    return with_overrides(finetune_recipe(start), [*FAST, *changes], "test")


def losses(out: Path) -> list[object]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(row["step"], row.get("loss"), row.get("val_accuracy")) for row in rows]


@pytest.mark.parametrize(
    ("config", "generative"),
    [(AR_CONFIG, AR()), (BERT_CONFIG, BERT(0.4, seed=0, stream="train"))],
    ids=["ar", "bert"],
)
def test_the_loss_is_the_sum_of_both_and_each_can_be_left_out(
    config: ModelConfig, generative: Generative
) -> None:
    model = random_model(replace(config, n_classes=3))
    tokens = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.tensor([0, 2, 1, 2]), 0, range(4))

    def value(**options: float) -> torch.Tensor:
        objective = Joint(generative, torch.tensor([1.0, 1.0, 2.0]), **options)
        return objective(model, *objective.inputs(batch)).detach()

    seen = generative.inputs(batch)  # of BERT with the mask: its classes see what is not hidden
    logits = model.classify(model.trunk(*seen))
    picked = -logits.log_softmax(dim=1)[range(4), batch.labels] * torch.tensor([1, 2, 1, 2])
    assert torch.allclose(value(gen_weight=0), picked, atol=1e-6)
    nats = generative(model, *seen)
    assert torch.allclose(value(clf_weight=0), nats, atol=1e-6)
    assert torch.allclose(value(clf_weight=0.5), nats + 0.5 * picked, atol=1e-6)
    # Smoothing gives a tenth of the target to all classes alike.
    even = -logits.log_softmax(dim=1).mean(dim=1) * torch.tensor([1, 2, 1, 2])
    smooth = value(gen_weight=0, label_smoothing=0.1)
    assert torch.allclose(smooth, 0.9 * picked + 0.1 * even, atol=1e-6)


def test_every_option_of_the_loss_reaches_it(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Joint]()

    class Noted(Joint):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("igpt.finetune.Joint", Noted)
    options = {"gen_weight": 0.5, "clf_weight": 2.0, "label_smoothing": 0.1}
    changes = [f"finetune.{name}={value}" for name, value in options.items()]
    changes += ["finetune.class_weights=balanced", "train.steps=1"]
    finetune(recipe(tiny_run, *changes), tmp_path / "classes", resume=False, say=silent)
    (joint,) = made
    assert {name: getattr(joint, name) for name in options} == options
    assert joint.class_weights.unique().numel() > 1  # the digits' classes differ in size


def test_balanced_weights_make_rare_classes_count_as_much() -> None:
    labels = np.array([0, 0, 0, 1, 0, 0, 0, 3])
    train = Labelled(np.zeros((8, 2, 2, 3), np.uint8), labels, ("a", "b", "never", "c"))
    weights = class_weights(train, FinetuneConfig(class_weights="balanced"))
    shares = np.bincount(labels, weights[labels].numpy())
    assert shares == pytest.approx([8 / 3, 8 / 3, 0, 8 / 3])
    assert class_weights(train, FinetuneConfig()).tolist() == [1, 1, 1, 1]


def test_a_model_learns_the_digits_and_the_best_one_is_kept(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "classes"
    longer = ("train.steps=160", "train.batch_size=32", "train.lr=0.01", "train.eval_every=20")
    done = finetune(recipe(tiny_run, *longer), out, resume=False, say=silent)
    assert done.best is not None
    assert done.best > 0.3
    best = max(row["val_accuracy"] or 0 for row in read_metrics(out / "metrics.jsonl")
               if "val_accuracy" in row)  # fmt: skip
    assert done.best == best
    pipeline = igpt.load(out)
    assert pipeline.class_names == tuple("0123456789")
    prediction = pipeline.predict(np.zeros((2, 8, 8, 3), np.uint8))
    assert prediction.probabilities.shape == (2, 10)
    # It is still a model of pictures.
    assert len(pipeline.sample(2)) == 2


@pytest.mark.usefixtures("on_processor")
def test_the_model_that_is_kept_is_that_of_the_best_validation(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth, asked = iter([0.5, 0.9, 0.7]), list[str]()  # after 4, 8 and 12 steps

    def value(metric: str, *_: object) -> float:
        asked.append(metric)
        return next(worth)

    monkeypatch.setattr("igpt.finetune.metric_value", value)
    balanced = "finetune.metric=balanced_accuracy"
    done = finetune(recipe(tiny_run, balanced), tmp_path / "whole", resume=False, say=silent)
    assert (done.outcome.step, done.best) == (12, 0.9)
    worth = iter([0.5, 0.9])
    short = recipe(tiny_run, balanced, "train.steps=8")
    finetune(short, tmp_path / "short", resume=False, say=silent)
    assert set(asked) == {"balanced_accuracy"}
    kept, best = (load_model(tmp_path / run)[0].state_dict() for run in ("whole", "short"))
    assert all(torch.equal(kept[name], best[name]) for name in kept)


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    tiny_run: Path, tmp_path: Path, objective: str
) -> None:
    whole, parts, start, pretrained = (tmp_path / x for x in ("whole", "parts", "start", "begun"))
    if objective == "ar":
        pretrained = tiny_run
    else:
        masked = tiny_recipe("objective=bert", "train.steps=2")
        pretrain(masked, pretrained, resume=False, say=silent)
    same = ("data.augmentation=cifar", "finetune.freeze=1", "finetune.layer_decay=0.5")
    finetune(recipe(pretrained, *same), whole, resume=False, say=silent)
    shutil.copytree(pretrained, start)
    finetune(recipe(start, *same, "train.steps=8"), parts, resume=False, say=silent)
    (parts / "recipe.yaml").write_text(recipe_yaml(recipe(start, *same)))
    with pytest.raises(UserError, match="another init_from"):
        finetune(recipe(pretrained, *same), parts, resume=True, say=silent)
    shutil.rmtree(start)  # it was moved, to where the whole run found it
    finetune(recipe(pretrained, *same), parts, resume=True, say=silent)
    assert losses(whole) == losses(parts)
    for a, b in zip(load_model(whole)[0].parameters(), load_model(parts)[0].parameters(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_it_stops_when_validation_has_not_improved_for_long(tiny_run: Path, tmp_path: Path) -> None:
    still = ("train.lr=1e-12", "train.patience=2", "train.steps=100")
    done = finetune(recipe(tiny_run, *still), tmp_path / "r", resume=False, say=silent)
    rows = [row for row in read_metrics(tmp_path / "r" / "metrics.jsonl") if "val_accuracy" in row]
    first_best = max(rows, key=lambda row: row["val_accuracy"] or 0)["step"]
    assert done.outcome.step == first_best + 8 < 100  # two validations, four steps apart
    assert done.outcome.stopped_early
    again = finetune(None, tmp_path / "r", resume=True, say=silent)
    assert again.outcome.step == done.outcome.step


def test_a_folder_that_was_streamed_must_not_grow_while_its_model_is_fine_tuned(
    tmp_path: Path,
) -> None:
    data, start, out = tmp_path / "pictures", tmp_path / "start", tmp_path / "out"
    write_classes(data, 24, 8)
    stream = ("data.streaming=true", "data.validation_pictures=4", "palette.colors=8")
    words = (f"data.source={data}", *stream, "train.steps=4", "data.image_size=4")
    pretrain(tiny_recipe(*words), start, resume=False, say=silent)
    finetune(recipe(start, "train.steps=4"), out, resume=False, say=silent)
    write_classes(data, 26, 8)
    with pytest.raises(UserError, match="24"):
        finetune(None, out, resume=True, say=silent)


def test_classes_must_stay_while_a_model_is_fine_tuned(tiny_run: Path, tmp_path: Path) -> None:
    data, out = write_classes(tmp_path / "pictures", 24, 8), tmp_path / "out"
    words = (f"data.source={data}", "train.steps=4", "train.eval_every=2")
    finetune(recipe(tiny_run, *words), out, resume=False, say=silent)
    finetune(None, out, resume=True, say=silent)
    for split in ("train", "test"):
        first = min((data / split).iterdir())
        first.rename(first.with_name("zebra"))
    with pytest.raises(UserError, match=r"cannot resume .*out: its class"):
        finetune(None, out, resume=True, say=silent)


def test_frozen_blocks_stay_and_the_others_move(tiny_run: Path, tmp_path: Path) -> None:
    finetune(recipe(tiny_run, "finetune.freeze=1"), tmp_path / "r", resume=False, say=silent)
    before, after = (load_model(p)[0].state_dict() for p in (tiny_run, tmp_path / "r"))
    for name, tensor in before.items():
        frozen = name.startswith(("wte", "wpe", "start", "blocks.0."))
        assert torch.equal(tensor, after[name]) == frozen, name


def test_deeper_layers_learn_slower_by_the_decay() -> None:
    model = random_model(replace(AR_CONFIG, n_classes=3))
    groups = parameter_groups(model, FinetuneConfig(layer_decay=0.5))
    n_layer = model.config.n_layer
    assert [g["lr_scale"] for g in groups] == [0.5 ** (n_layer + 1 - i) for i in range(n_layer + 2)]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_a_step_of_a_deeper_layer_is_smaller_by_the_decay(tiny_run: Path, tmp_path: Path) -> None:
    """Adam's first step is the rate itself, wherever there is a gradient."""
    words = ("finetune.layer_decay=0.1", "train.steps=1", "train.warmup_steps=0")
    finetune(recipe(tiny_run, *words), tmp_path / "r", resume=False, say=silent)
    before, after = (load_model(p)[0].state_dict() for p in (tiny_run, tmp_path / "r"))
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["head.weight"] == pytest.approx(0.003, rel=0.01)
    assert moved["blocks.1.mlp.fc.weight"] == pytest.approx(0.0003, rel=0.01)
    assert moved["blocks.0.mlp.fc.weight"] == pytest.approx(0.00003, rel=0.01)
    assert moved["wpe"] == pytest.approx(0.000003, rel=0.05)


def test_from_scratch_takes_none_of_the_weights(tiny_run: Path, tmp_path: Path) -> None:
    changes = ("finetune.from_scratch=true", "train.lr=1e-12", "train.steps=1")
    finetune(recipe(tiny_run, *changes), tmp_path / "r", resume=False, say=silent)
    before, after = (load_model(p)[0] for p in (tiny_run, tmp_path / "r"))
    assert not torch.allclose(before.wte, after.wte, atol=1e-3)


def test_few_labels_are_few_and_a_bert_model_is_fine_tuned_too(tmp_path: Path) -> None:
    start, said = tmp_path / "bert", []
    masked = tiny_recipe("objective=bert", "mask_probability=0.3", "train.steps=4")
    pretrain(masked, start, resume=False, say=silent)
    changes = ("finetune.labels_per_class=3", "finetune.class_weights=balanced")
    done = finetune(recipe(start, *changes), tmp_path / "r", resume=False, say=said.append)
    assert any(line.startswith("30 labelled pictures") for line in said)
    assert done.outcome.step == 12
    assert igpt.load(tmp_path / "r").predict(np.zeros((8, 8), np.uint8)).labels.shape == (1,)


def test_only_the_few_pictures_that_it_learns_from_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, pictures, decoded = tmp_path / "start", write_classes(tmp_path / "pictures", 40, 8), []
    pretrain(tiny_recipe("train.steps=1"), start, resume=False, say=silent)

    def count(pictures: Pictures, *args: Any) -> Decoded:
        decoded.append(len(pictures))
        return encode_all(pictures, *args)

    monkeypatch.setattr("igpt.data.labels.encode_all", count)
    changes = (f"data.source={pictures}", "finetune.labels_per_class=3", "train.steps=1")
    finetune(recipe(start, *changes), tmp_path / "tuned", resume=False, say=silent)
    assert decoded == [6, 4]


@pytest.mark.usefixtures("on_processor")
def test_a_run_on_imagenet_crops_is_fine_tuned_on_them_and_goes_on_to_the_bit(
    tmp_path: Path,
) -> None:
    start, pictures = tmp_path / "start", write_classes(tmp_path / "pictures", 40, 12)
    broken = pictures / "train" / "dark" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    words = (f"data.source={pictures}", "data.image_size=8", "data.augmentation=imagenet")
    pretrain(tiny_recipe(*words, "train.steps=2"), start, resume=False, say=silent)
    changes, said = ("finetune.gen_weight=0", "train.lr=0.01"), []
    with pytest.warns(UserWarning, match=r"skipped an unreadable picture: .*dark/0.png"):
        done = finetune(recipe(start, *changes), tmp_path / "whole", resume=False, say=said.append)
    assert done.best == 1.0  # dark from light
    assert any(line.startswith("36 labelled pictures to train on, 4 held out") for line in said)
    finetune(recipe(start, *changes), tmp_path / "parts", resume=False, say=silent)
    latest = tmp_path / "parts" / "checkpoints" / "latest"
    latest.write_text("step-00000008\n")
    finetune(None, tmp_path / "parts", resume=True, say=silent)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    plain = recipe(start, *changes, "data.augmentation=none")
    finetune(plain, tmp_path / "plain", resume=False, say=silent)
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("order=column", "those of the model that it starts from"),
        ("data.image_size=9", "those of the model that it starts from"),
        ("model.n_layer=3", "those of the model that it starts from"),
        ("finetune.freeze=3", "the model has 2 blocks"),
        ("finetune.labels_per_class=999", "class 0 has"),
        ("finetune.gen_weight=0,finetune.clf_weight=0", "nothing to learn"),
        ("data.source=", "names no data"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_run: Path, tmp_path: Path, change: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        finetune(recipe(tiny_run, *change.split(",")), tmp_path / "r", resume=False, say=silent)
    assert not (tmp_path / "r").exists()


def test_no_test_split_is_needed(tiny_run: Path, tmp_path: Path) -> None:
    pictures = write_classes(tmp_path / "pictures", 12, 6)
    (pictures / "test").rename(pictures / "validation")
    done = finetune(
        recipe(tiny_run, f"data.source={pictures}", "train.steps=4"),
        tmp_path / "r",
        resume=False,
        say=silent,
    )
    assert done.outcome.step == 4


def test_what_pretraining_held_out_of_a_single_split_is_for_testing_whatever_the_seed(
    tmp_path: Path,
) -> None:
    pictures, base = write_classes(tmp_path / "pictures", 40, 0), tmp_path / "base"
    changes = (f"data.source={pictures}", "data.image_size=6", "train.steps=1", "train.seed=3")
    pretrain(tiny_recipe(*changes), base, resume=False, say=silent)
    tuned = recipe(base, "train.seed=1")
    source = open_data(tuned.data)
    _, held_out = training_splits(source, tuned.data, seed=3)
    with pytest.warns(UserWarning, match="no split 'test'"):
        parts = open_training(source, tuned.data, tuned.split_seed)
    with pytest.warns(UserWarning, match="no split 'test'"):
        test = pictures_to_test(source, tuned.data, tuned.split_seed)
    assert names(test) == names(held_out)
    learned, chosen = (names(part.pictures) for part in parts)
    assert not names(test) & (learned | chosen)
    assert len(learned) + len(chosen) + len(test) == 40


def names(pictures: Pictures) -> set[str]:
    return {pictures.name(i) for i in range(len(pictures))}


def test_other_pictures_have_columns_of_their_own_and_are_held_out_alike(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe_file = run / "recipe.yaml"
    text = recipe_file.read_text().replace("label_column: null", "label_column: kind")
    recipe_file.write_text(text)
    assert finetune_recipe(run).data.label_column == "kind"
    assert finetune_recipe(run, "digits").data.label_column == "kind"  # the same source
    other = finetune_recipe(run, "elsewhere").data
    assert (other.source, other.label_column, other.split_seed) == ("elsewhere", None, 0)


def test_a_fine_tuned_run_is_not_pretrained(tiny_run: Path, tmp_path: Path) -> None:
    """Its head would be lost, and the best model replaced by another measure's best."""
    finetune(recipe(tiny_run, "train.steps=4"), tmp_path / "r", resume=False, say=silent)
    for again in (None, tiny_recipe()):
        with pytest.raises(UserError, match="is a run of `igpt finetune`"):
            pretrain(again, tmp_path / "r", resume=True, say=silent)
    with pytest.raises(UserError, match="is one of `igpt finetune`"):
        pretrain(recipe(tiny_run), tmp_path / "new", resume=False, say=silent)


def test_a_pretraining_run_is_not_gone_on_with(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="is a run of `igpt pretrain`"):
        finetune(None, tiny_run, resume=True, say=silent)
