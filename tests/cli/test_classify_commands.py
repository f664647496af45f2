"""probe, finetune and predict through the command line."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from conftest import (
    assert_mistake,
    is_sheet,
    picture_bytes,
    silent,
    tiny_recipe,
    write_classes,
)
from igpt.checkpoint import RunDirectory
from igpt.interop.files import read_metadata, read_tensors
from igpt.pretrain import pretrain
from igpt.probe import attention

FAST = ("--steps", 6, "--batch-size", 16, "--eval-every", 3, "--checkpoint-every", 3)


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written into."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("classify") / "run"))


def test_probe_chooses_a_layer_and_predict_uses_it(igpt, run: Path, tmp_path: Path) -> None:
    result = igpt("probe", run, "--pool", "grid:4", "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert list(values["validation_by_layer"]) == ["0", "1", "2"]
    assert values["validation_by_layer"][values["layer"]] == max(
        values["validation_by_layer"].values()
    )
    (summary,) = values["summaries"]
    assert summary["accuracy"][0] > 0.7
    assert is_sheet(run / "probe" / "accuracy_by_layer.png")
    assert json.loads((run / "probe" / "results.json").read_text()) == values
    printed = igpt("probe", run, "--pool", "grid:4").out
    for layer, value in values["validation_by_layer"].items():
        chosen = "  <- chosen" if layer == values["layer"] else ""
        assert re.search(rf"^ +{layer} +{100 * value:.1f}{chosen}$", printed, re.M), printed

    table, matrix = tmp_path / "p.csv", tmp_path / "c.png"
    words = ("predict", run, "--csv", table, "--confusion", matrix)
    predicted = json.loads(igpt(*words, "--json").out)
    assert predicted["accuracy"] == pytest.approx(summary["accuracy"][0], abs=0.01)
    assert predicted["count"] == 297
    assert np.sum(predicted["confusion"]) == 297
    assert 0 <= predicted["calibration_error"] < 0.5
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 297
    assert rows[0] == {k: str(v) for k, v in predicted["predictions"][0].items()}
    right = [row["label"] == row["true"] for row in rows]
    assert np.mean(right) == pytest.approx(predicted["accuracy"])
    for name, told in predicted["classes"].items():
        true = [row for row in rows if row["true"] == name]
        taken = [row for row in rows if row["label"] == name]
        hits = sum(row["label"] == name for row in true)
        assert told["count"] == len(true)
        assert told["recall"] == pytest.approx(hits / len(true))
        assert told["precision"] == pytest.approx(hits / len(taken) if taken else 0)
    assert sum(float(rows[0][f"p_{digit}"]) for digit in range(10)) == pytest.approx(1, abs=1e-4)
    assert is_sheet(matrix)
    text = igpt(*words).out
    first = [f"{float(rows[0]['probability']):.3f}", *(rows[0][k] for k in ("label", "true"))]
    assert [*first, rows[0]["picture"]] in [line.split() for line in text.splitlines()]
    assert f"all 297 with every class's probability: {table}" in text
    assert f"confusion matrix: {matrix}" in text
    assert f"accuracy {100 * predicted['accuracy']:.1f} %" in text


def test_what_a_probe_learned_from_is_not_what_it_is_tested_on(
    igpt, run: Path, tmp_path: Path
) -> None:
    pictures, probe = write_classes(tmp_path / "pictures", 40, 0), tmp_path / "probe"
    values = json.loads(igpt("probe", run, "--data", pictures, "--out", probe, "--json").out)
    found = igpt("predict", run, "--data", pictures, "--probe", probe, "--json")
    predicted = json.loads(found.out)
    assert predicted["count"] == 4  # the tenth that was set apart
    assert predicted["accuracy"] == pytest.approx(values["summaries"][0]["accuracy"][0])
    learned = igpt(
        "predict", run, "--data", pictures, "--probe", probe, "--split", "train", "--json"
    )
    names = [{row["picture"] for row in json.loads(r.out)["predictions"]} for r in (found, learned)]
    assert len(names[0] | names[1]) == 40
    assert not names[0] & names[1]
    # What it did not learn from is taken whole.
    others = write_classes(tmp_path / "others", 12, 0)
    elsewhere = igpt("predict", run, "--data", others, "--probe", probe, "--json")
    assert json.loads(elsewhere.out)["count"] == 12
    assert "learned from" not in elsewhere.err
    (tmp_path / "held").mkdir()
    others.rename(tmp_path / "held" / "val")
    elsewhere = igpt("predict", run, "--data", tmp_path / "held", "--probe", probe, "--json")
    assert json.loads(elsewhere.out)["count"] == 12
    # Of more pictures others are kept for testing.
    extra = pictures / "train" / "dark" / "extra.png"
    shutil.copy(pictures / "train" / "dark" / "0.png", extra)
    grown = igpt("predict", run, "--data", pictures, "--probe", probe)
    assert grown.status == 0, grown.err
    assert "had 40 pictures when the probe learned from it and has 41 now" in grown.err
    assert "when the probe learned" not in found.err + learned.err
    extra.unlink()
    # Nor is it known of pictures that were moved.
    moved = igpt("predict", run, "--data", pictures.rename(tmp_path / "moved"), "--probe", probe)
    assert moved.status == 0, moved.err
    assert "the probe learned from 40 pictures, as many as" in moved.err


def test_a_folder_of_train_and_val_is_probed_on_val_without_a_false_alarm(
    igpt, tmp_path: Path
) -> None:
    pictures, run = write_classes(tmp_path / "pictures", 30, 8), tmp_path / "run"
    (pictures / "test").rename(pictures / "val")
    pretrain(tiny_recipe(f"data.source={pictures}"), run, resume=False, say=silent)
    assert_mistake(igpt("probe", run), "no split 'test', only: train, validation; give --split val")
    outside = ("score", run, "--limit", 1, "--split", "validation", "--ood", pictures)
    assert_mistake(igpt(*outside, "--out", tmp_path / "out"), "give --ood-split validation")
    probed = igpt("probe", run, "--split", "validation", "--layer", 1)
    assert probed.status == 0, probed.err
    assert "27 pictures to train on, 3 to choose with, 8 to test on" in probed.err
    assert "when the run began" not in probed.err


def test_few_labels_beside_every_baseline(igpt, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "few"
    words = ("--layer", 1, "--labels-per-class", 1, 5, "all", "--seeds", 2, "--baselines")
    result = igpt("probe", run, *words, "--cnn-minutes", 0.02, "--out", out)
    assert result.status == 0, result.err
    values = json.loads((out / "results.json").read_text())
    methods = dict.fromkeys(row["method"] for row in values["summaries"])
    assert len(methods) == 6
    for method in methods:
        sizes = [r["labels_per_class"] for r in values["summaries"] if r["method"] == method]
        assert sizes == [1, 5, None]
    for row in values["summaries"]:
        mean, deviation = (100 * value for value in row["accuracy"])
        once = row["labels_per_class"] is None  # one seed has no spread
        number = rf"{mean:.1f}" if once else rf"{mean:.1f} ± +{deviation:.1f}"
        size = "all" if once else row["labels_per_class"]
        assert re.search(rf"^ +{size} +{number} .*{row['method']}$", result.out, re.M), row
    assert len(values["outcomes"]) == 6 * (2 + 2 + 1)
    assert is_sheet(out / "few_labels.png")


def test_an_attentive_probe_is_saved_and_used(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "STEPS", 300)
    out = tmp_path / "attention"
    words = ("--head", "attention", "--layer", 1, "--labels-per-class", 20, "--seeds", 1)
    values = json.loads(igpt("probe", run, *words, "--out", out, "--json").out)
    accuracy = values["summaries"][0]["accuracy"][0]
    assert accuracy > 0.2  # chance is 0.1
    predicted = json.loads(igpt("predict", run, "--probe", out, "--json").out)
    assert predicted["accuracy"] == pytest.approx(accuracy, abs=0.01)
    again = igpt("probe", run, "--layer", 1, "--labels-per-class", 1, "--seeds", 1, "--out", out)
    assert f"the probe in {out} will be replaced" in again.err


def test_the_masks_of_a_bert_model_vote_for_its_probe_too(igpt, tmp_path: Path) -> None:
    run = tmp_path / "bert"
    pretrain(tiny_recipe("objective=bert", "train.steps=30"), run, resume=False, say=silent)
    values = json.loads(igpt("probe", run, "--pool", "grid:4", "--json").out)
    once, modal, mean = (
        json.loads(igpt("predict", run, "--masks", *words, "--json").out)
        for words in ([1], [5], [5, "--mask-ensemble", "logits"])
    )
    accuracy = values["summaries"][0]["accuracy"][0]
    assert once["accuracy"] == pytest.approx(accuracy, abs=0.001)  # as the probe was tested
    assert json.loads(igpt("predict", run, "--json").out) == modal  # the paper's five
    labels = [[row["label"] for row in found["predictions"]] for found in (once, modal, mean)]
    assert labels[0] != labels[1] != labels[2]
    assert min(modal["accuracy"], mean["accuracy"]) > accuracy - 0.02
    assert "--masks: must be at least 1" in igpt("predict", run, "--masks", 0).err


def test_predict_tells_of_pictures_that_it_cannot_score(igpt, run: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    assert igpt("probe", run, "--layer", 1, "--out", probe).status == 0
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for name, low in (("all", 0), ("some", -1)):
        labels = np.where(np.arange(40) % 2, 1, low)
        np.savez(tmp_path / f"{name}.npz", x_test=images, y_test=labels)
    words = ("predict", run, "--probe", probe, "--data")
    some = igpt(*words, tmp_path / "some.npz")
    assert some.status == 0, some.err
    assert "warning: 20 pictures without a label are left out of the scores" in some.err
    assert "without a label" not in igpt(*words, tmp_path / "all.npz").err


def test_a_run_may_be_called_like_a_source_and_named_as_the_current_folder(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = Path(shutil.copytree(run, tmp_path / "digits"))
    monkeypatch.chdir(tmp_path)
    assert igpt("finetune", "digits", "--out", "classes", *FAST).status == 0
    assert RunDirectory(tmp_path / "classes").recipe().init_from == str(digits.resolve())
    monkeypatch.chdir(digits)
    assert igpt("finetune", ".", *FAST).status == 0
    assert (digits / "runs" / "digits-classes" / "config.json").is_file()


def test_finetune_then_predict_files(igpt, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "classes"
    words = ("finetune", run, "--out", out, *FAST, "--freeze", 1, "finetune.label_smoothing=0.1")
    values = json.loads(igpt(*words, "--json").out)
    assert values["step"] == 6
    assert is_sheet(out / "figures" / "loss.png")
    assert 0 < values["best_val_accuracy"] <= 1
    assert json.loads(igpt(*words, "--resume", "--json").out)["step"] == 6
    assert json.loads(igpt("finetune", "--out", out, "--resume", "--json").out)["step"] == 6
    other = igpt("finetune", out, "--out", out, "--resume")
    assert_mistake(other, "its recipe has another init_from")
    fewer = igpt(*words, "--resume", "--labels-per-class", 3)
    assert_mistake(fewer, "its recipe has another finetune.labels_per_class")
    recipe = (out / "recipe.yaml").read_text()
    paper = ("schedule: constant", "gen_weight: 1.0", "clf_weight: 1.0")  # what it takes by default
    for line in ("freeze: 1", "label_smoothing: 0.1", *paper):
        assert line in recipe
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture_bytes(i))
    (tmp_path / "3.png").write_bytes(b"no picture")
    files = sorted(tmp_path.glob("*.png"))
    result = igpt("predict", out, *files, "--json")
    predictions = json.loads(result.out)["predictions"]
    assert json.loads(result.out)["skipped"] == 1
    assert "1 unreadable picture skipped" in igpt("predict", out, *files).out
    assert [p["picture"] for p in predictions] == [str(file) for file in files[:3]]
    assert all(p["label"] in "0123456789" for p in predictions)
    assert "skipped 1 unreadable" in result.err


@pytest.mark.parametrize(
    ("split", "words", "hint"),
    [
        ("test", [], ["--split", "test"]),
        ("val", ["data.test_split=validation"], ["--split", "validation"]),
        ("val", [], ["IMAGES"]),  # it has nothing to test on
        ("train", [], ["--split", "test"]),  # what was held out of its only split
    ],
)
def test_the_hint_after_fine_tuning_is_a_command_that_works(
    igpt, run: Path, tmp_path: Path, split: str, words: list[str], hint: list[str]
) -> None:
    pictures, out = write_classes(tmp_path / "pictures", 40, 8), tmp_path / "my classes"
    if split == "train":
        shutil.rmtree(pictures / "test")
    else:
        (pictures / "test").rename(pictures / split)
    start = ("finetune", run, "--data", pictures, "--out", out, "--steps", 2, "--eval-every", 2)
    then = shlex.split(igpt(*start, *words).out.partition("; then: ")[2])
    assert then == ["igpt", "predict", str(out), *hint]
    images = pictures / split / "dark" / "0.png"
    done = igpt(*(images if word == "IMAGES" else word for word in then[1:]))
    assert done.status == 0, done.err


def test_a_fine_tuning_without_out_goes_beside_other_runs(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = json.loads(igpt("finetune", run, *FAST, "--json").out)
    assert values["run"] == str(Path("runs") / f"{run.name}-classes")
    assert (tmp_path / values["run"] / "recipe.yaml").is_file()


MISTAKES = [
    (["probe", "{tmp}/none"], "no run at"),
    (["probe", "{run}", "--layer", "3"], "a layer of 0 to 2"),
    (["probe", "{run}", "--pool", "grid:9"], "grid:G with G up to 8"),
    (["probe", "{run}", "--labels-per-class", "900"], "labelled pictures to train on, 900"),
    (["probe", "{run}", "--labels-per-class", "some"], "--labels-per-class"),
    (["probe", "{run}", "--data", "{tmp}/bare.npz"], "no labels"),
    (["probe", "{run}", "--data", "{tmp}/one.npz"], "of one class"),
    (["probe", "{run}", "--data", "{tmp}/test.npz"], "test split: the pictures have no labels"),
    (["probe", "{run}", "--head", "attention", "--pool", "last"], "pools by itself"),
    (["probe", "{run}", "--head", "attention", "--pca", "3"], "--pca: not with --head attention"),
    (["probe", "{run}", "--seeds", "0"], "--seeds: must be at least 1"),
    (["probe", "{run}", "--seeds", "4"], "--seeds: not without numbers of --labels-per-class"),
    (["probe", "{run}", "--seeds", "4", "--labels-per-class", "all"], "--seeds: not without numb"),
    (["probe", "{run}", "--pca", "-5"], "--pca must not be negative"),
    (["probe", "{run}", "--epochs", "3", "--lr", "1"], "--epochs, --lr: not without --solver sgd"),
    (["probe", "{run}", "--cnn-minutes", "1"], "--cnn-minutes: not without --baselines"),
    (["probe", "{run}", "--baselines", "--cnn-minutes", "nan"], "--cnn-minutes must be positive"),
    (["probe", "{run}", "--solver", "sgd", "--lr", "nan"], "must be above 0, and finite"),
    (["probe", "{run}", "--baselines", "--cnn-minutes", "0"], "--cnn-minutes must be positive"),
    (["probe", "{run}", "--labels-per-class", "few"], "expected numbers from 1 or all, got few"),
    (["probe", "{run}", "--solver", "sgd", "--seeds", "2"], "--seeds: not with --solver sgd"),
    (["probe", "{run}", "--head", "attention", "--layer", "0:1"], "single layers"),
    (["finetune", "{run}", "--out", "{tmp}/r", "--data", "{tmp}/bare.npz"], "no labels"),
    (["finetune", "{run}", "--out", "{tmp}/r", "--data", "{tmp}/one.npz"], "of one class"),
    (["finetune", "{run}", "--out", "{tmp}/r", "finetune.rate=1"], "unknown field 'finetune.rate'"),
    (["finetune", "{run}", "--out", "{tmp}/r", "--freeze", "5"], "2 blocks"),
    (["finetune", "{run}", "--out", "{run}"], "holds a run already"),
    (["finetune", "{tmp}/none", "--out", "{tmp}/r"], "no run at"),
    (["finetune", "--out", "{tmp}/r"], "name the RUN to start from"),
    (["finetune", "--resume"], "name the run to go on with"),
    (["finetune", "--resume", "--out", "{tmp}/r"], "to resume"),
    (["finetune", "{run}", "{tmp}/other"], "expected one RUN"),
    (["predict", "{run}", "--probe", "{tmp}/none"], "no probe in"),
    (["predict", "{run}", "--masks", "3"], "for a BERT model"),
    (["predict", "{run}", "--data", "{tmp}/many.npz"], "does not know 10, 11; it knows 0, 1"),
    (["predict", "{run}", "--probe", "{tmp}/foreign"], "made for another model"),
    (["predict", "{run}", "{tmp}/none.png", "--probe", "{run}/probe"], "no picture"),
    (["predict", "{run}", "--data", "{tmp}/bare.npz", "--split", "train", "--confusion",
      "{tmp}/c.png"], "needs labelled pictures"),
    (["predict", "{run}", "--confusion", "{tmp}/c.txt"], "draws a .png, not c.txt"),
    (["predict", "{run}", "--csv", "{tmp}"], "it is a folder"),
]  # fmt: skip


def test_features_that_no_memory_holds_are_refused_before_they_are_computed(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1,350 + 150 + 297 pictures, 3 layers of 16 numbers of 64 positions, 4 bytes each: 22.1 MB
    monkeypatch.setattr("igpt.device.total_memory", lambda: 22_000_000)
    words = ["probe", run, "--pool", "flatten", "--out", tmp_path / "out"]
    assert_mistake(igpt(*words), "fewer --layer, a coarser --pool, or --solver sgd")
    monkeypatch.setattr("igpt.device.total_memory", lambda: 22_200_000)
    assert igpt(*words, "--labels-per-class", 1, "--seeds", 1).status == 0
    # The untrained network's are held beside them.
    assert_mistake(igpt(*words, "--labels-per-class", 1, "--baselines"), "take 0.0 GB")
    # Of 10 + 150 pictures, or of 297, one layer: 1.2 MB.
    attention = ["probe", run, "--head", "attention", "--labels-per-class", 1, "--seeds", 1]
    monkeypatch.setattr("igpt.device.total_memory", lambda: 1_200_000)
    assert_mistake(igpt(*attention, "--out", tmp_path / "out"), "fewer labels")


@pytest.mark.parametrize(
    ("baseline", "before"), [("pixel_features", 1), ("untrained", 3), ("train_cnn", 5)]
)
def test_a_probe_is_there_before_its_baselines_are(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: str, before: int
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"igpt.study.methods.{baseline}", interrupted)
    words = ["--baselines", "--cnn-minutes", 1, "--labels-per-class", 2, "--seeds", 1]
    assert igpt("probe", run, *words, "--out", tmp_path).status == 130
    assert igpt("predict", run, "--probe", tmp_path, "--limit", 3).status == 0
    summaries = json.loads((tmp_path / "results.json").read_text())["summaries"]
    assert len(summaries) == before  # the probe, and what came before


@pytest.mark.parametrize(
    ("own", "words", "expected"),
    [
        ("flip", [], (2.0, "flip")),
        ("imagenet", [], (2.0, "none")),  # which crops larger pictures than it is given
        ("flip", ["--cnn-minutes", 0.5, "--augmentation", "cifar"], (0.5, "cifar")),
    ],
)
def test_the_network_is_trained_as_long_as_the_run_and_on_pictures_moved_alike(
    igpt,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    words: list[object],
    expected: tuple[float, str],
) -> None:
    asked = []

    def spy(*args: object, minutes: float, augmentation: str, **_options: object) -> None:
        _, labels, *_ = args
        assert np.array_equal(np.sort(labels), np.arange(10))  # what the probe learned from
        asked.append((minutes, augmentation))
        raise KeyboardInterrupt  # it is not trained

    monkeypatch.setattr("igpt.study.methods.train_cnn", spy)
    monkeypatch.setattr("igpt.probing.make_baselines", lambda *_: [])  # the others
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    recipe = theirs / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("augmentation: none", f"augmentation: {own}"))
    rows: list[dict[str, float]] = [  # of batches of 8: half a minute, then one and a half
        {"step": 4, "loss": 2.5, "pictures_per_second": 32 / 30},
        {"step": 4, "val_loss": 2.5},
        {"step": 12, "loss": 2.5, "pictures_per_second": 64 / 90},
    ]
    (theirs / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    few = ("--layer", 1, "--labels-per-class", 1, "--seeds", 1)
    assert igpt("probe", theirs, "--baselines", *few, *words).status == 130
    assert asked == [(pytest.approx(expected[0]), expected[1])]


@pytest.mark.parametrize("lost", ["metrics.jsonl", "recipe.yaml"])
def test_how_long_a_run_was_trained_is_asked_before_its_features_are_computed(
    igpt, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    (theirs / lost).unlink()
    computed: list[object] = []
    monkeypatch.setattr(
        "igpt.study.methods.ModelFeatures.__call__", lambda *_: computed.append(1) or {}
    )
    words = ("--data", "digits", "--baselines", "--labels-per-class", 1)
    assert_mistake(
        igpt("probe", theirs, *words), "does not say how long it was trained: give --cnn"
    )
    assert not computed


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt, run: Path, tmp_path: Path, argv: list[str], complaint: str
) -> None:
    if not (run / "probe" / "probe.safetensors").is_file():
        assert igpt("probe", run).status == 0
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "one.npz", images=images, labels=labels * 0)
    np.savez(tmp_path / "many.npz", x_test=images, y_test=labels + 8)
    np.savez(tmp_path / "test.npz", x_train=images, y_train=labels, x_test=images)
    foreign = Path(shutil.copytree(run / "probe", tmp_path / "foreign"))
    mine = foreign / "probe.safetensors"
    header = json.loads(read_metadata(mine)["probe"])
    header["made_for"]["weights"] = "0" * 16
    save_file(read_tensors(mine), mine, {"probe": json.dumps(header)})
    before = sorted(p.name for p in tmp_path.iterdir())
    result = igpt(*[word.format(tmp=tmp_path, run=run) for word in argv])
    assert_mistake(result, complaint)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
