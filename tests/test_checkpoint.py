"""The run directory: what is whole stays whole, and what is broken is named."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from conftest import load_model, newest, silent, tiny_recipe
from igpt.checkpoint import CheckpointWriter, Progress, RunDirectory
from igpt.config import UserError
from igpt.pretrain import pretrain
from igpt.train import Trainer


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be broken."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_holds_what_its_description_says(tiny_run: Path) -> None:
    names = {str(p.relative_to(tiny_run)) for p in tiny_run.rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith("tensorboard/")} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "palette.npy",
        "metrics.jsonl",
        "checkpoints/latest",
        ".lock",
        *(
            f"checkpoints/step-{step:08d}/{name}"
            for step in (8, 12)
            for name in ("shard-00001-model-00001-of-00001.safetensors", "state.json")
        ),
    }
    assert any(n.startswith("tensorboard/") for n in names)


def test_the_resolved_recipe_and_the_palette_are_saved(tiny_run: Path) -> None:
    run = RunDirectory(tiny_run)
    assert run.recipe() == tiny_recipe("data.split_pictures=1500")  # which the run counted
    palette = run.palette()
    assert palette is not None
    assert palette == load_model(tiny_run)[1].palette


def test_the_top_of_the_run_is_the_model_of_the_best_validation(tiny_run: Path) -> None:
    progress, tensors = newest(tiny_run)
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert set(losses) == {4, 8, 12}
    assert progress.best == min(losses.values())
    assert min(losses, key=losses.__getitem__) == 12  # it still falls so early
    model, _ = load_model(tiny_run)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_refused(run: Path, keep: int) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or not a safetensors") as error:
        load_model(run)
    assert "\n" not in str(error.value)


def test_a_pickle_with_code_in_it_is_refused_and_never_run(run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    for name in ("model.safetensors", "palette.npy"):
        (run / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError):
        load_model(run)
    with pytest.raises(UserError):
        RunDirectory(run).palette()
    assert not (tmp_path / "exploded").exists()


def test_a_missing_tensor_a_strange_one_and_a_wrong_shape_are_named(run: Path) -> None:
    path = run / "model.safetensors"
    weights = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"
    for broken, complaint in (
        ({k: v for k, v in weights.items() if k != name}, f"lack tensor {name}"),
        ({**weights, "transformer.h.9.foo": torch.zeros(1)}, "unknown tensor transformer.h.9.foo"),
        ({**weights, name: torch.zeros(3, 5)}, "has shape"),
    ):
        save_file(broken, path)
        with pytest.raises(UserError, match=complaint):
            load_model(run)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"activation_function": "tanh"}, "activation 'tanh', expected one of"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_embd": 32}, "shape"),
        ({"n_inner": 7}, "n_inner"),
        ({"igpt": {"order": "spiral"}}, "unknown order"),
        ({"igpt": "raster"}, "config.json: "),
        ({"n_layer": "many"}, "config.json: invalid literal"),
        ({"n_head": None}, "config.json: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_field(
    run: Path, change: dict[str, object], complaint: str
) -> None:
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=complaint):
        load_model(run)


@pytest.mark.parametrize("clusters", ["red", [[0, 0, 0], [1, 1]], [["a", "b", "c"]]])
def test_clusters_that_are_none_are_refused(run: Path, clusters: object) -> None:
    path = run / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clusters": clusters}))
    with pytest.raises(UserError, match="clusters"):
        load_model(run)


def test_clusters_that_do_not_fit_the_model_are_refused(run: Path) -> None:
    path = run / "preprocessor_config.json"
    contents = json.loads(path.read_text())
    for clusters, complaint in (
        (contents["clusters"][:-1], "16 clusters, but the model has 17"),
        ([[3.0, 0, 0]] * 17, "lie in"),
        (None, "no clusters"),
    ):
        path.write_text(json.dumps({**contents, "clusters": clusters}))
        with pytest.raises(UserError, match=complaint):
            load_model(run)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config.json"):
        load_model(tmp_path)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((1000,), float(step)), "step/w": torch.tensor(float(step))}


def test_checkpoints_come_back_and_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.latest_checkpoint() is None
    for step in (5, 10, 15):
        run.begin_checkpoint(Progress(step), tensors(step)).publish()
    names = sorted(p.name for p in run.checkpoints.iterdir())
    assert names == ["latest", "step-00000010", "step-00000015"]
    progress, found = newest(tmp_path)
    assert progress == Progress(15)
    assert found.keys() == tensors(15).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(15).items())


def test_without_its_pointer_the_newest_checkpoint_is_taken_and_it_says_so(tmp_path: Path) -> None:
    run, said = RunDirectory(tmp_path), list[str]()
    for step in (5, 10):
        run.begin_checkpoint(Progress(step), tensors(step)).publish()
    (run.checkpoints / "latest").unlink()
    checkpoint = run.latest_checkpoint(said.append)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(10)
    (line,) = said
    assert "latest" in line


def test_what_killed_processes_left_half_written_goes_with_the_next_checkpoint(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    left = run.checkpoints / ".step-00000003.tmp"
    left.mkdir(parents=True)
    (left / "shard").write_bytes(b"half")
    run.begin_checkpoint(Progress(5), tensors(5)).publish()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step-00000005"]


def test_what_killed_processes_left_of_a_runs_files_goes_when_it_is_trained_again(
    tmp_path: Path,
) -> None:
    left, mine = tmp_path / ".model.safetensors.0123abcd.tmp", tmp_path / ".features.npz.01.tmp"
    left.write_bytes(b"half")
    mine.touch()
    pretrain(tiny_recipe("train.steps=1"), tmp_path, resume=False, say=silent)
    assert not left.exists()
    left.write_bytes(b"half")
    pretrain(None, tmp_path, resume=True, say=silent)
    assert not left.exists()
    assert mine.exists()


def test_a_checkpoint_is_the_state_when_it_was_begun_and_is_seen_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, allowed = RunDirectory(tmp_path), threading.Event()
    write = HuggingFaceStorageWriter.write_data

    def wait_and_write(*args: Any) -> Any:
        assert allowed.wait(60)
        return write(*args)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", wait_and_write)
    state = tensors(5)
    unfinished = run.begin_checkpoint(Progress(5), state)
    for tensor in state.values():
        tensor.zero_()  # the run goes on
    assert not unfinished.is_written()
    assert run.latest_checkpoint() is None
    allowed.set()
    unfinished.publish()
    _, found = newest(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(5).items())


@pytest.mark.usefixtures("on_processor")
def test_a_checkpoint_takes_its_state_once_more_and_two_files_while_it_is_written(
    tmp_path: Path,
) -> None:
    code = """
        import sys, torch
        from pathlib import Path
        from igpt.checkpoint import Progress, RunDirectory
        from igpt.parallel import storage

        storage.FILE_BYTES = 10_000_000

        def peak():
            words = Path("/proc/self/status").read_text().split()
            return 1024 * int(words[words.index("VmHWM:") + 1])

        def checkpoint(step, tensors):
            RunDirectory(Path(sys.argv[1])).begin_checkpoint(Progress(step), tensors).publish()

        checkpoint(1, {"small": torch.ones(10)})  # what is imported at the first time
        state = {f"{i:03}": torch.ones(250_000) for i in range(100)}
        before = peak()
        checkpoint(2, state)
        print((peak() - before) / 1e8)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    times = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"a state of 100 MB takes {100 * times:.0f} MB more")
    assert 1 < times < 1.4
    assert len(list((tmp_path / "checkpoints" / "step-00000002").glob("*.safetensors"))) == 10


@pytest.mark.parametrize("name", ["shard-00001-model-00001-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [None, 0, 0.5])
def test_a_half_written_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, name: str, keep: float | None
) -> None:
    run, said = RunDirectory(tmp_path), list[str]()
    for step in (5, 10):
        run.begin_checkpoint(Progress(step), tensors(step)).publish()
    path = run.checkpoints / "step-00000010" / name
    contents = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(contents[: int(len(contents) * keep)])
    checkpoint = run.latest_checkpoint(said.append)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(5)
    (line,) = said
    assert str(path) in line
    assert "going back" in line
    # The damaged one is gone when the run has come past it, not the one that it went on from.
    run.begin_checkpoint(Progress(7), tensors(7)).publish()
    names = sorted(p.name for p in run.checkpoints.iterdir())
    assert names == ["latest", "step-00000005", "step-00000007"]


@pytest.mark.parametrize(
    ("name", "at"), [("shard-00001-model-00001-of-00001.safetensors", 8), ("state.json", 0)]
)
def test_a_damaged_header_falls_back_too(tmp_path: Path, name: str, at: int) -> None:
    run, said = RunDirectory(tmp_path), list[str]()
    for step in (5, 10):
        run.begin_checkpoint(Progress(step), tensors(step)).publish()
    path = run.checkpoints / "step-00000010" / name
    damaged = bytearray(path.read_bytes())
    damaged[at : at + 9] = b"damaged !"
    path.write_bytes(damaged)
    checkpoint = run.latest_checkpoint(said.append)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(5)
    assert "going back" in said[0]


@pytest.mark.parametrize("header", [{"step": "5", "files": {}}, {"step": 5, "files": 3}])
def test_a_header_of_other_types_is_none(tmp_path: Path, header: dict[str, object]) -> None:
    run = RunDirectory(tmp_path)
    run.begin_checkpoint(Progress(5), tensors(5)).publish()
    (run.checkpoints / "step-00000005" / "state.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="no checkpoint is whole"):
        run.latest_checkpoint()


def test_without_a_whole_checkpoint_there_is_an_error(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.begin_checkpoint(Progress(5), tensors(5)).publish()
    (run.checkpoints / "step-00000005" / "state.json").unlink()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        run.latest_checkpoint()


def test_a_checkpoint_that_does_not_say_which_files_it_has_is_not_taken_for_whole(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    run.begin_checkpoint(Progress(5), tensors(5)).publish()
    (run.checkpoints / "step-00000005" / "state.json").write_text(json.dumps(asdict(Progress(5))))
    with pytest.raises(UserError, match="no checkpoint is whole"):
        run.latest_checkpoint()


def test_a_run_that_is_being_trained_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.alone(), pytest.raises(UserError, match="another process is training"):
        pretrain(tiny_recipe(), tmp_path, resume=False, say=silent)
    pretrain(tiny_recipe("train.steps=1"), tmp_path, resume=False, say=silent)  # let go


def test_where_the_disk_knows_no_locks_a_run_is_trained_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("igpt.checkpoint.fcntl.flock", unknown)
    (tmp_path / ".lock").touch()  # copied from elsewhere
    pretrain(tiny_recipe("train.steps=1"), tmp_path, resume=False, say=silent)
    pretrain(None, tmp_path, resume=True, say=silent)


def test_a_run_that_another_process_began_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from igpt import run

    settle = run.settle_recipe

    def overtaken(*args: Any) -> Any:
        settled = settle(*args)
        monkeypatch.setattr("igpt.run.settle_recipe", settle)
        pretrain(tiny_recipe("train.steps=2"), tmp_path, resume=False, say=silent)
        return settled

    monkeypatch.setattr("igpt.run.settle_recipe", overtaken)
    with pytest.raises(UserError, match="another process began it"):
        pretrain(tiny_recipe(), tmp_path, resume=False, say=silent)
    assert newest(tmp_path)[0].step == 2


def test_a_step_that_fails_leaves_the_checkpoint_that_was_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Trainer, batch: object) -> None:
        if self.step == 5:
            raise RuntimeError("out of memory")
        optimizer_step(self, batch)

    optimizer_step = Trainer._optimizer_step
    monkeypatch.setattr(Trainer, "_optimizer_step", step)
    monkeypatch.setattr(CheckpointWriter, "is_written", lambda _: False)
    with pytest.raises(RuntimeError):
        pretrain(tiny_recipe(), tmp_path, resume=False, say=silent)
    assert newest(tmp_path)[0].step == 4


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, left, rename = set[int](), list[list[str]](), os.replace

    def renamed(old: Path, new: Path) -> None:
        if Path(old).is_dir():
            left.append([p.name for p in Path(old).iterdir() if p.stat().st_ino not in flushed])
        rename(old, new)

    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", renamed)
    RunDirectory(tmp_path).begin_checkpoint(Progress(5), {"w": torch.ones(9)}).publish()
    assert left == [[]]
