"""What is shared of a run: a folder with a card."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import igpt
from conftest import is_sheet, silent, tiny_recipe, write_pictures
from igpt.config import UserError
from igpt.data.decode import imagenet_centre
from igpt.order import Codec
from igpt.palette import Palette
from igpt.pretrain import pretrain
from igpt.run_data import RunData
from test_model import AR, BERT, random_model


@pytest.fixture
def igpt_cli(request: pytest.FixtureRequest):
    """The fixture `igpt`, which here is the name of the package."""
    return request.getfixturevalue("igpt")


def test_a_dry_run_writes_all_that_would_be_uploaded(igpt_cli, tiny_run: Path, tmp_path: Path):
    out = tmp_path / "shared"
    result = igpt_cli("push", tiny_run, "me/digits", "--license", "mit", "--dry-run", out)
    assert result.status == 0, result.err
    card = (out / "README.md").read_text()
    for line in (
        "license: mit",
        "library_name: igpt",
        "# me/digits",
        "| data | digits |",
        "nats/pixel",
        'igpt.load("me/digits")',
        'ImageGPTForCausalImageModeling.from_pretrained("me/digits")',
    ):
        assert line in card
    assert is_sheet(out / "samples.png")
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    assert np.array_equal(igpt.load(out).nll(pixels), igpt.load(tiny_run).nll(pixels))
    again = igpt_cli("push", tiny_run, "me/digits", "--dry-run", out)
    assert again.status == 2
    assert "not empty" in again.err


def test_names_of_local_folders_are_not_told(tiny_run: Path, tmp_path: Path) -> None:
    from igpt.share import write_folder

    secret, run = tmp_path / "secret", Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    for field, plain, name in (
        ("source", "digits", "pictures.npy"),
        ("path", "null", "colours.npy"),
        ("init_from", "null", "start"),
    ):
        assert recipe.count(f"{field}: {plain}") == 1
        recipe = recipe.replace(f"{field}: {plain}", f"{field}: {secret / name}")
    (run / "recipe.yaml").write_text(recipe)
    told = {"run": str(secret), "data": str(secret / "pictures.npy"), "out": "digits"}
    told |= {"layer": "2", "metric": "accuracy", "summaries": []}
    (run / "probe").mkdir(exist_ok=True)
    (run / "probe" / "results.json").write_text(json.dumps(told))
    write_folder(igpt.load(run), tmp_path / "shared", "me/run", None)
    for file in (tmp_path / "shared").rglob("*.*"):
        assert str(secret).encode() not in file.read_bytes(), file
    shared = (tmp_path / "shared" / "recipe.yaml").read_text()
    for line in ("source: ./pictures.npy", "path: palette.npy", "init_from: ./start"):
        assert line in shared
    assert "| data | pictures.npy |" in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.parametrize("name", ["cats", "digits"])
def test_a_shared_run_is_tested_on_what_it_held_out(tmp_path: Path, name: str) -> None:
    from igpt.share import write_folder

    here, there = tmp_path / name, tmp_path / "there"
    write_pictures(here, *(f"{i}.png" for i in range(20)))
    pretrain(tiny_recipe(f"data.source={here}"), tmp_path / "run", resume=False, say=silent)
    write_folder(igpt.load(tmp_path / "run"), tmp_path / "shared", "me/run", None)
    held_out = RunData.of(tmp_path / "run").pictures()
    here.rename(there)
    found = RunData.of(tmp_path / "shared", str(there)).pictures()
    assert [Path(found.name(i)).name for i in range(len(found))] == [
        Path(held_out.name(i)).name for i in range(len(held_out))
    ]
    with pytest.raises(UserError, match=f"no data at './{name}'"):
        RunData.of(tmp_path / "shared").pictures()


def test_the_probe_of_a_model_that_is_no_run_is_shared_too(
    igpt_cli, tiny_run: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    igpt.load(tiny_run).save_pretrained(model)
    (model / "recipe.yaml").unlink()
    few = ("--data", "digits", "--layer", 1, "--labels-per-class", 4, "--seeds", 1)
    assert igpt_cli("probe", model, *few).status == 0
    igpt.load(model).save_pretrained(tmp_path / "copy")
    assert igpt_cli("push", model, "me/model", "--dry-run", tmp_path / "shared").status == 0
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    expected = igpt.load(model).predict(images).probabilities
    for folder in ("copy", "shared"):
        assert np.array_equal(igpt.load(tmp_path / folder).predict(images).probabilities, expected)
    told = (tmp_path / "shared" / "probe" / "results.json").read_text()
    assert str(tmp_path) not in told


def test_the_probe_of_earlier_weights_is_not_shared(
    igpt_cli, tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    igpt.load(tiny_run).save_pretrained(folder)
    few = ("--data", "digits", "--layer", 1, "--labels-per-class", 4, "--seeds", 1)
    assert igpt_cli("probe", folder, *few).status == 0
    later = igpt.load(folder)
    with torch.no_grad():
        later.model.wpe[0, 0] += 1
    with pytest.warns(UserWarning, match="the probe is left out: .* made for another model"):
        later.save_pretrained(tmp_path / "later")
    assert not (tmp_path / "later" / "probe").exists()


def test_the_card_tells_the_steps_that_were_done(tiny_run: Path, tmp_path: Path) -> None:
    from igpt.share import write_folder

    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("  steps: 12\n", "  steps: 5000\n"))
    write_folder(igpt.load(run), tmp_path / "shared", "me/stopped", None)
    assert "| 12 steps of 8 pictures |" in (tmp_path / "shared" / "README.md").read_text()


def test_the_card_tells_what_a_probe_and_fine_tuning_reached(
    igpt_cli, tiny_run: Path, tmp_path: Path
) -> None:
    run, finetuned = Path(shutil.copytree(tiny_run, tmp_path / "run")), tmp_path / "finetuned"
    probe = ("probe", run, "--layer", 1, "--labels-per-class", 4, "all", "--seeds", 2)
    assert igpt_cli(*probe, "--baselines", "--cnn-minutes", 0.001).status == 0
    assert igpt_cli("push", run, "me/run", "--dry-run", tmp_path / "a").status == 0
    of_4, of_all = [
        row["accuracy"][0]
        for row in json.loads((run / "probe" / "results.json").read_text())["summaries"]
        if row["method"] == "linear probe"
    ]
    assert (
        f"| probe | layer 1: accuracy on test {100 * of_4:.1f} % with 4 labels a class, "
        f"{100 * of_all:.1f} % with all labels |"
    ) in (tmp_path / "a" / "README.md").read_text()

    assert (
        igpt_cli("finetune", run, "--out", finetuned, "--steps", 2, "--eval-every", 2).status == 0
    )
    assert igpt_cli("push", finetuned, "me/run", "--dry-run", tmp_path / "b").status == 0
    rows = map(json.loads, (finetuned / "metrics.jsonl").read_text().splitlines())
    (accuracy,) = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
    card = (tmp_path / "b" / "README.md").read_text()
    assert f"| validation | accuracy {100 * accuracy:.1f} % |" in card
    assert "so that its logits differ slightly. Its processor squashes" in card
    assert "differ slightly" not in (tmp_path / "a" / "README.md").read_text()


def test_a_saved_run_predicts_and_crops_as_the_run_does(
    igpt_cli, tiny_run: Path, tmp_path: Path
) -> None:
    run, saved = Path(shutil.copytree(tiny_run, tmp_path / "run")), tmp_path / "saved"
    probe = ("--layer", 1, "--labels-per-class", 4, "--seeds", 1)
    assert igpt_cli("probe", run, *probe).status == 0
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("augmentation: none", "augmentation: imagenet"))
    igpt.load(run).save_pretrained(saved)
    again, picture = igpt.load(saved), Image.new("L", (9, 12), 100)
    assert again.transform is imagenet_centre
    assert again.predict(picture).names == igpt.load(run).predict(picture).names
    again.save_pretrained(saved)  # where it was loaded from
    assert len(igpt.load(saved).predict(picture).names) == 1
    igpt.Pipeline(again.model, again.codec).save_pretrained(saved)
    with pytest.raises(UserError, match="no probe in"):
        igpt.load(saved).predict(picture)


@pytest.mark.parametrize(("order", "same"), [("raster", True), ("hilbert", False)])
def test_transformers_is_recommended_for_what_it_computes(order: str, same: bool) -> None:
    from igpt.share import card

    palette = Palette(np.linspace(-1, 1, 11, dtype=np.float32)[:, None].repeat(3, axis=1))
    pipeline = igpt.Pipeline(random_model(AR), Codec(palette, order, 3))
    text = card(pipeline, "me/model", None)
    assert ("ImageGPTForCausalImageModeling.from_pretrained" in text) is same
    assert ("computes something else" in text) is not same


def test_what_is_shared_of_a_bert_model_has_no_samples(tmp_path: Path) -> None:
    from igpt.share import write_folder

    codec = Codec(Palette(np.linspace(-1, 1, 33, dtype=np.float32).reshape(11, 3)), "raster", 3)
    pipeline = igpt.Pipeline(random_model(BERT), codec)
    write_folder(pipeline, tmp_path / "shared", "me/bert", None)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "samples.png" not in card
    assert "p.features(" in card
    assert "transformers import" not in card  # it would put a causal mask
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["igpt"]["causal"] is False


def test_an_upload_that_cannot_be_is_one_line_before_anything_is_painted(
    igpt_cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[object] = []
    monkeypatch.setattr("igpt.share.write_folder", lambda *_: painted.append(1))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("me/digits", "not a name"):
        result = igpt_cli("push", tiny_run, name, "--token", "hf_x")
        assert result.status == 2
        (line,) = [line for line in result.err.splitlines() if "error:" in line]
        assert "cannot upload" in line
    assert not painted


def test_a_pipeline_pushes_its_folder_to_a_branch(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict[str, object]] = {}

    def record(name: str):
        def call(_api: object, *args: object, **options: object) -> str:
            if "folder_path" in options:
                options["files"] = {p.name for p in Path(str(options["folder_path"])).iterdir()}
            calls[name] = {"args": args, **options}
            return "https://hub/me/digits"

        return call

    for name in ("create_repo", "create_branch", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", record(name))
    private = SimpleNamespace(private=True)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: private)
    address = igpt.load(tiny_run).push_to_hub(
        "me/digits", license="mit", private=True, revision="v1", commit_message="first"
    )
    assert address == "https://hub/me/digits"
    assert calls["create_repo"]["private"] is True
    assert calls["create_branch"]["branch"] == "v1"
    uploaded = calls["upload_folder"]
    assert (uploaded["repo_id"], uploaded["revision"]) == ("me/digits", "v1")
    assert uploaded["commit_message"] == "first"
    # What an earlier push left would be loaded with this one's weights.
    stale = ["lm_head.safetensors", "model-0123abcd-00001.safetensors", "model.safetensors"]
    stale += ["model.safetensors.index.json", "recipe.yaml", "probe/results.json"]
    others = ["checkpoints/8/model.safetensors", "adapter.safetensors", "notes.md"]
    patterns = uploaded["delete_patterns"]
    matched = [f for f in stale + others if any(fnmatchcase(f, p) for p in patterns)]
    assert matched == stale
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert files < uploaded["files"]


def test_a_private_push_to_a_public_model_is_refused(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[object] = []
    there = SimpleNamespace(private=False)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: there)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *_, **__: uploaded.append(1))
    with pytest.raises(UserError, match="cannot upload me/digits: it is there already, and public"):
        igpt.load(tiny_run).push_to_hub("me/digits", private=True)
    assert not uploaded
    there.private = True
    igpt.load(tiny_run).push_to_hub("me/digits", private=True)
    assert uploaded
