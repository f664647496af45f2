"""The command line through its entry point: what it prints, writes, and says of mistakes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, assert_mistake, is_sheet, picture_bytes, write_classes
from igpt import sample
from igpt.cli import COMMANDS, main
from igpt.cli.arguments import spread
from igpt.config import ModelConfig, UserError
from igpt.folder import save_model
from igpt.order import Codec
from igpt.palette import Palette
from test_model import random_model


def test_help_lists_every_command_and_each_has_an_example(igpt) -> None:
    overview = igpt("--help")
    assert overview.status == 0
    for name in COMMANDS:
        assert name in overview.out
        page = igpt(name, "--help")
        assert page.status == 0
        assert f"example:\n  igpt {name}" in page.out
        assert "--json" in page.out


def test_no_arguments_show_the_help_and_the_version_is_known(igpt) -> None:
    assert "commands:" in igpt().out
    assert igpt("--version").out.startswith("igpt 0.")


def test_eval_measures_the_whole_test_split(igpt, tiny_run: Path) -> None:
    values = json.loads(igpt("eval", tiny_run, "--json").out)
    assert values["count"] == 297
    assert values["bits_per_pixel"] == pytest.approx(values["nats_per_pixel"] / np.log(2))
    assert values["nats_per_picture"] == pytest.approx(values["nats_per_pixel"] * 64)
    assert 1 < values["nats_per_pixel"] < np.log(17)
    part = json.loads(igpt("eval", tiny_run, "--limit", 10, "--split", "train", "--json").out)
    assert part["count"] == 10
    assert "nats/pixel" in igpt("eval", tiny_run, "--limit", 3).out


def test_sample_paints_a_sheet_and_repeats_it(igpt, tiny_run: Path, tmp_path: Path) -> None:
    words = ("sample", tiny_run, "-n", 5, "--top-k", 9, "--top-p", 0.9, "--temperature", 0.8)
    sheets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = igpt(*words, "--seed", seed, "--out", tmp_path / f"{name}.png", "--json")
        assert json.loads(result.out) == {"out": str(tmp_path / f"{name}.png"), "count": 5}
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert is_sheet(tmp_path / "a.png")
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize(
    ("words", "painted"),
    [
        (["sample", "-n", 5], ["00000", "00001", "00002", "00003"]),
        (["complete", "--limit", 3, "-n", 2], ["00000-0", "00000-1", "00001-0", "00001-1"]),
    ],
    ids=["sample", "complete"],
)
def test_what_was_painted_before_an_interruption_is_in_the_folder(
    igpt,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    painted: list[str],
) -> None:
    command, *options = [*words, "--precision", "float32"]
    assert igpt(command, tiny_run, *options, "--out", tmp_path / "all").status == 0
    uniforms = sample._uniforms

    def interrupted(seed: int, pictures: range, n_positions: int) -> torch.Tensor:
        if pictures.start >= 4:
            raise KeyboardInterrupt
        return uniforms(seed, pictures, n_positions)

    monkeypatch.setattr("igpt.sample._uniforms", interrupted)
    monkeypatch.setattr("igpt.sample.MAX_BATCH", 2)
    monkeypatch.setattr("igpt.cli.progress.SECONDS", 0)
    result = igpt(command, tiny_run, *options, "--out", tmp_path / "part")
    assert result.status == 130
    total = len(list((tmp_path / "all").iterdir()))
    progress = [f"{done} of {total} pictures painted" for done in (2, 4)]
    assert result.err.splitlines() == [*progress, "interrupted"]
    assert sorted(path.stem for path in (tmp_path / "part").iterdir()) == painted
    for path in (tmp_path / "part").iterdir():
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()
    assert igpt(command, tiny_run, *options, "--out", tmp_path / "part.npz").status == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "part"]


@pytest.mark.parametrize("command", ["eval", "score", "predict"])
def test_long_commands_tell_how_far_they_are(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    config = ModelConfig(2, 2, 16, vocab_size=11, n_positions=64, n_classes=10)
    palette = Palette(np.linspace(-1, 1, 33, dtype=np.float32).reshape(11, 3))
    names = tuple("0123456789")
    save_model(tmp_path / "model", random_model(config), Codec(palette, "raster", 8), names)
    monkeypatch.setattr("igpt.cli.progress.SECONDS", 0)
    out = ["--out", tmp_path / "out"] if command == "score" else []
    words = ("--data", "digits", "--limit", 70)
    result = igpt(command, tmp_path / "model", *words, *out)
    assert result.status == 0, result.err
    told = [line for line in result.err.splitlines() if "% of" in line]
    assert told[:3] == [f"{part} % of 70 pictures" for part in (0, 33, 66)]


def test_complete_takes_files_folders_and_data(igpt, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / "in" / f"{i}.png").write_bytes(picture_bytes(i))
    out = tmp_path / "sheet.png"
    folder = tmp_path / "in"
    file = folder / "0.png"
    for words, names in (
        (["--images", file], [str(file)]),
        (["--images", folder, file], [str(file), str(folder / "1.png"), str(file)]),
        (["--data", "digits", "--limit", 2], ["digits/test[0]", "digits/test[1]"]),
    ):
        result = igpt("complete", tiny_run, *words, "--keep", 0.25, "-n", 2, "--out", out, "--json")
        values = json.loads(result.out)
        pictures = values.pop("pictures")
        assert pictures == names
        assert values == {"out": str(out), "count": len(names), "n": 2, "skipped": 0}
        assert is_sheet(out)
        out.unlink()


def test_complete_takes_a_few_pictures_of_a_set_unless_it_is_told_how_many(
    igpt, tiny_run: Path, tmp_path: Path
) -> None:
    words = ("complete", tiny_run, "--keep", 0.9, "-n", 1, "--out", tmp_path / "s.png", "--json")
    result = igpt(*words)
    assert json.loads(result.out)["count"] == 8
    assert "8 pictures from all over the set" in result.err
    assert [spread(n, 3).tolist() for n in (9, 2)] == [[0, 4, 8], [0, 1]]
    assert json.loads(igpt(*words, "--limit", 9).out)["count"] == 9


def test_palette_writes_clusters_and_says_what_they_lose(igpt, tmp_path: Path) -> None:
    out = tmp_path / "palette.npy"
    words = ("--data", "digits", "--size", 8, "--colors", 5, "--out", out)
    values = json.loads(igpt("palette", *words, "--sheet", tmp_path / "p.png", "--json").out)
    assert values["colors"] == 5
    assert 20 < values["psnr"] < 60
    assert np.load(out).shape == (5, 3)
    assert is_sheet(tmp_path / "p.png")


def test_pretrain_takes_short_flags_and_dotted_fields(igpt, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--order", "snake", "--objective", "bert", "--colors", 5, "--lr", 0.01, "--steps", 4)
    result = igpt("pretrain", "digits", "--out", out, *TINY[1:], *flags, "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert values["step"] == 4
    assert values["best_val_loss"] > 0
    recipe = (out / "recipe.yaml").read_text()
    for line in ("order: snake", "objective: bert", "colors: 5", "lr: 0.01", "log_every: 1"):
        assert line in recipe
    assert is_sheet(out / "figures" / "loss.png")
    assert json.loads(igpt("eval", out, "--limit", 20, "--json").out)["nats_per_pixel"] > 0
    again = igpt("pretrain", "--out", out, "--resume", "--json")
    assert json.loads(again.out)["step"] == 4


MISTAKES = [
    (["paint"], "invalid choice: 'paint'"),
    (["pretain"], "did you mean pretrain?"),
    (["eval", "{tmp}", "--splt=test"], "did you mean --split?"),
    (["eval", "{tmp}", "--precision", "floatt32"], "did you mean float32?"),
    (["pretrain", "--out", "{tmp}/r"], "name a recipe"),
    (["pretrain", "digits"], "--out"),
    (["pretrain", "digits", "--init-from", "{run}", "--out", "{tmp}/r"], "a recipe or --init-from"),
    (["pretrain", "--init-from", "{tmp}/nothing", "--out", "{tmp}/r"], "no run at"),
    (["pretrain", "cifar", "--out", "{tmp}/r"], "unknown recipe 'cifar'"),
    (["pretrain", "digits", "emoji32", "--out", "{tmp}/r"], "expected one recipe"),
    (["pretrain", "digits", "--out", "{tmp}/r", "train.lrr=1"], "unknown field 'train.lrr'"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--steps", "many"], "train.steps"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--stepz", "3"], "--stepz"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--lr", "inf"], "positive and finite"),
    (["eval", "{run}", "--data", "digits", "--image-column", "x"], "have no columns"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--order", "spiral"], "unknown order 'spiral'"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--model", "vit"], "unknown model preset"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--data", "{tmp}/nothing"], "no data at"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--data", "{tmp}/empty"], "no pictures"),
    (["pretrain", "digits", "--out", "{tmp}/text.npy"], "cannot write into"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--colors", "0"], "palette.colors must be 2"),
    (["eval", "{run}", "--data", "{tmp}/one", "--split", "tst"], "no split 'tst'"),
    (["pretrain", "digits", "--out", "{tmp}/r", "--palette", "{tmp}/no.npy"], "no palette file"),
    (
        ["pretrain", "digits", "--out", "{tmp}/r", "--palette", "p.npy", "--colors", "4"],
        "has its own colours",
    ),
    (["pretrain", "--out", "{tmp}/r", "--resume"], "no run"),
    (["eval", "{tmp}/nothing"], "no run at"),
    (["eval", "{tmp}/empty"], "config.json"),
    (["eval", "{run}", "--split", "dev"], "train, test"),
    (["eval", "{run}", "--limit", "0"], "--limit"),
    (["eval", "{run}", "--data", "{tmp}/text.npy"], "not a whole .npy"),
    (["sample", "{run}", "-n", "0", "--out", "{tmp}/s.png"], "n must be at least 1"),
    (["sample", "{run}", "--temperature", "-1", "--out", "{tmp}/s.png"], "temperature"),
    (["sample", "{run}", "--out", "{tmp}/s.xyz"], "expected a name like sheet.png"),
    (["complete", "{run}", "--images", "{tmp}/none.png", "--out", "{tmp}/s.png"], "no picture"),
    (["complete", "{run}", "--images", "{tmp}/text.npy", "--out", "{tmp}/s.png"], "is an array"),
    (["complete", "{run}", "--limit", "1", "--keep", "1", "--out", "{tmp}/s.png"], "keep"),
    (["sample", "{run}", "--temperature", "nan", "--out", "{tmp}/s.png"], "temperature"),
    (["sample", "{run}", "--temperature", "1e-38", "--out", "{tmp}/s.png"], "temperature"),
    (["sample", "{run}", "--out", "{run}"], "is not empty"),
    (["sample", "{run}", "--out", "{tmp}/empty/../text.npy/s.png"], "cannot write into"),
    (["palette", "--data", "digits", "--size", "0", "--out", "{tmp}/p.npy"], "--size: must"),
    (["palette", "--data", "digits", "--size", "8", "--seed", "-1", "--out", "{tmp}/p.npy"],
     "--seed must not be negative"),
    (["push", "{run}", "me/x", "--dry-run", "{tmp}/text.npy"], "is a file"),
]  # fmt: skip


@pytest.mark.parametrize("command", ["complete", "predict", "score"])
def test_what_only_data_has_is_not_asked_of_files(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(picture_bytes(0))
    for words in (["--split", "test"], ["--image-column", "x", "--label-column", "y"]):
        result = igpt(command, tiny_run, tmp_path / "a.png", *words)
        assert_mistake(result, f"{', '.join(words[::2])}: not with picture files")


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES)
def test_a_mistake_gives_one_line_status_2_and_leaves_nothing(
    igpt,
    tiny_run: Path,
    tmp_path: Path,
    argv: list[str],
    complaint: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("hello")
    write_classes(tmp_path / "one", 6, 0)
    result = igpt(*[word.format(tmp=tmp_path, run=tiny_run) for word in argv])
    assert_mistake(result, complaint)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "one", "text.npy"]


def test_a_run_on_the_hub_names_its_data(
    igpt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("igpt.interop.files.fetch_folder", lambda *_args, **_options: tiny_run)
    here, there = (igpt("eval", run, "--limit", 5) for run in (tiny_run, "me/digits"))
    assert there.status == 0, there.err
    assert there.out == here.out


def test_a_run_without_a_model_says_so(igpt, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    for command in ("eval", "sample", "info"):
        assert_mistake(igpt(command, tmp_path), "first validation makes its model")
    (tmp_path / "empty.yaml").write_text("")
    words = ["pretrain", tmp_path / "empty.yaml", "--out", tmp_path / "run"]
    assert_mistake(igpt(*words), "empty.yaml is empty")


def test_what_no_memory_holds_is_one_line(
    igpt, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_args: object, **_options: object) -> None:
        raise MemoryError("Unable to allocate 63.3 GiB")

    monkeypatch.setattr("igpt.pipeline.Pipeline.likelihood", large)
    assert_mistake(igpt("eval", tiny_run), "not enough memory: Unable to allocate 63.3 GiB")

    def more_than_there_is(*_args: object, **_options: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("igpt.pipeline.Pipeline.likelihood", more_than_there_is)
    assert_mistake(igpt("eval", tiny_run), "not enough memory: [enforce fail")


def test_a_folder_that_grows_does_not_test_in_silence_on_what_was_learned(
    igpt, tmp_path: Path
) -> None:
    folder, run = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.png").write_bytes(picture_bytes(i))
    small = ("--steps", 2, "--colors", 4, "--batch-size", 4, "model.n_layer=1", "model.n_embd=16")
    words = ("pretrain", "digits", "--data", folder, "--out", run, *small)
    assert igpt(*words).status == 0
    assert "split_pictures: 20" in (run / "recipe.yaml").read_text()
    assert "when the run began" not in igpt("eval", run).err
    assert igpt(*words, "--resume").status == 0
    for i in range(20, 23):
        (folder / f"{i:02}.png").write_bytes(picture_bytes(i))
    assert "20 pictures when the run began and has 23 now" in igpt("eval", run).err
    assert_mistake(igpt(*words, "--resume"), "had 20 pictures to train and validate on")
    (folder / "more.png").write_bytes(picture_bytes(99))  # a warning is said once a process
    onward = ("pretrain", "--init-from", run, "--out", tmp_path / "next")
    assert "has 24 now" in igpt(*onward).err
    assert igpt(*onward, "--resume").status == 0  # it counted them anew
    # A recipe alone brings no count of other pictures.
    (tmp_path / "others").mkdir()
    for i in range(12):
        (tmp_path / "others" / f"{i}.png").write_bytes(picture_bytes(i))
    again = ("pretrain", run / "recipe.yaml", "--data", tmp_path / "others", "--out")
    assert "when the run began" not in igpt(*again, tmp_path / "new").err
    assert "split_pictures: 12" in (tmp_path / "new" / "recipe.yaml").read_text()
    # Nor does the recipe of a run that went on from a model of the first ones.
    again = ("pretrain", tmp_path / "next" / "recipe.yaml", "--data", tmp_path / "others", "--out")
    assert "when the run began" not in igpt(*again, tmp_path / "other").err
    assert "split_pictures: 12" in (tmp_path / "other" / "recipe.yaml").read_text()


def test_a_run_knows_its_pictures_from_any_working_directory(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for i in range(20):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(picture_bytes(i))
    monkeypatch.chdir(tmp_path)
    small = ("--steps", 2, "--colors", 4, "--batch-size", 4, "model.n_layer=1", "model.n_embd=16")
    words = ("pretrain", "digits", "--data", "pictures", "--out", "run", *small)
    assert igpt(*words).status == 0
    assert igpt(*words, "--resume").status == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    for data in ((), ("--data", "../pictures"), ("--data", tmp_path / "pictures")):
        values = json.loads(igpt("eval", "../run", "--json", *data).out)
        assert values["count"] == 2  # what training held out, and not what it learned from


def test_a_name_that_stdout_cannot_write_is_escaped(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cat \N{CHECK MARK}.png"
    path.write_bytes(picture_bytes(0))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with pytest.raises(SystemExit, match="0"):
        main(["score", str(tiny_run), str(path), "--out", str(tmp_path / "scores")])
    sys.stdout.flush()
    assert b"cat \\u2713.png" in written.getvalue()


def test_a_reader_that_has_gone_is_no_error() -> None:
    words = [sys.executable, "-m", "igpt", "info", "igpt-s"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 0


def test_others_may_read_what_is_written(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    for name in ("model.safetensors", "config.json", "palette.npy"):
        assert (tiny_run / name).stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_no_run_is_not_written_over(igpt, tmp_path: Path) -> None:
    for name in ("model.safetensors", "checkpoints/step-99999999/weights"):
        folder = tmp_path / name.partition("/")[0]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("somebody's")
        assert_mistake(igpt("pretrain", "digits", *TINY, "--out", folder), "of something else")
        assert (folder / name).read_text() == "somebody's"


def test_a_run_does_not_lie_among_its_pictures(
    igpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures would be counted among them."""
    (tmp_path / "0.png").write_bytes(picture_bytes(0))
    monkeypatch.chdir(tmp_path)
    words = ("pretrain", "digits", *TINY, "--data", ".", "--out", "runs/mine")
    assert_mistake(igpt(*words), "would lie among the pictures of")
    assert not (tmp_path / "runs").exists()
    assert_mistake(igpt(*words[:-1], "."), "would lie among the pictures of")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="no run at nothing"):
        main(["eval", "nothing", "--debug"])


def test_unreadable_pictures_are_counted_in_the_summary(igpt, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(picture_bytes(i))
    (folder / "broken.png").write_bytes(b"")
    words = ("--data", folder, "--colors", 8, "--out", tmp_path / "run")
    result = igpt("pretrain", "digits", *TINY, *words)
    assert result.status == 0, result.err
    assert "1 unreadable picture skipped" in result.out
    assert "broken.png" in result.err
    for command, words in (("eval", []), ("complete", ["-n", 1, "--out", tmp_path / "c.png"])):
        used = igpt(command, tmp_path / "run", folder, *words)
        assert "1 unreadable picture skipped" in used.out, used.err
        assert (
            json.loads(igpt(command, tmp_path / "run", folder, *words, "--json").out)["skipped"]
            == 1
        )


def test_a_recipe_that_tests_on_validation_takes_what_was_held_out_of_a_single_split(
    igpt, tmp_path: Path
) -> None:
    """As the ImageNet recipes are, on one's own pictures."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "mine.npy", images)
    words = ("--data", tmp_path / "mine.npy", "data.test_split=validation", "--colors", 4)
    run = ("pretrain", "digits", *TINY, *words, "--steps", 2, "--out", tmp_path / "run")
    assert igpt(*run).status == 0
    tested = igpt("eval", tmp_path / "run", "--json")
    assert json.loads(tested.out)["count"] == 4
    assert "has no split 'validation': the 4 pictures that training held out" in tested.err
