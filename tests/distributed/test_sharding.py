"""A model split over processes: weights, curve, checkpoints and export of one that is not."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.testing._internal.distributed.fake_pg import FakeStore

import igpt.attention
import igpt.folder
import igpt.model
import several
from conftest import TINY, load_model, no_gpu, rows, silent, tiny_recipe
from igpt.checkpoint import Progress, RunDirectory, optimizer_tensors
from igpt.cli import main
from igpt.config import ModelConfig, ParallelConfig, Recipe, UserError
from igpt.device import default_device
from igpt.evaluate import picture_nats
from igpt.folder import fill_model, open_model, save_model
from igpt.model import ImageGPT
from igpt.objectives import AR
from igpt.order import Codec
from igpt.palette import Palette
from igpt.parallel import launch, storage
from igpt.parallel.gradients import accumulate, average_gradients
from igpt.parallel.processes import gather, mean_over_processes_, processes, rank, size
from igpt.parallel.sharding import is_split, local, split, whole
from igpt.plan import Division, n_parameters, training_memory
from igpt.pretrain import pretrain
from igpt.recipes import load_recipe
from igpt.run import new_model
from igpt.train import ObjectiveModule
from measured_memory import peak_bytes

# What is compared with several processes is where they are: on the processor.
pytestmark = pytest.mark.usefixtures("on_processor")

SHORT = [
    *("train.steps=4", "train.eval_every=4", "train.checkpoint_every=2"),
    "data.validation_fraction=0.025",
]
MIXED = ["train.grad_clip=0.5", "data.augmentation=flip", "train.patience=1"]
AR_WORDS = [*SHORT, *MIXED, "train.micro_batch_size=1"]
BERT_WORDS = [*SHORT, "objective=bert", "train.activation_checkpointing=true"]
BFLOAT16 = [*SHORT, "train.precision=bfloat16"]

# name -> processes, and how they share the model
LAYOUTS = {
    "shard-2": (2, ["parallel.shard=2"]),
    "shard-4": (4, ["parallel.shard=null"]),
    "hybrid": (4, ["parallel.data=2", "parallel.shard=2"]),
    "tensor-2": (2, ["parallel.tensor=2"]),
    "tensor-copies": (4, ["parallel.tensor=2", "parallel.data=2"]),
    "tensor-shard": (4, ["parallel.tensor=2", "parallel.shard=2"]),
}

CASES = {"ar": AR_WORDS, "bert": BERT_WORDS}
# Pictures of a pass through a model with divided MLPs, whose passes take longest.
MICRO = {"tensor-2": 4, "tensor-copies": 2, "tensor-shard": 2}
# Four processes learn masked pixels in one layout only, for the time that each takes.
TRAINED = [
    (layout, case)
    for layout, (n, _) in LAYOUTS.items()
    for case in CASES
    if n == 2 or case == "ar" or layout == "tensor-shard"
]


def train_all(out: Path) -> None:
    """The cases of this file for all layouts of so many processes."""
    storage.FILE_BYTES = 10_000  # of a process several files, as it writes of a large model
    with processes(ParallelConfig()):
        for layout, case in TRAINED:
            n, words = LAYOUTS[layout]
            if n == size():
                micro = f"train.micro_batch_size={MICRO.get(layout, 1)}"
                recipe = tiny_recipe(*words, *CASES[case], *([micro] if case == "ar" else []))
                pretrain(recipe, out / layout / case, resume=False, say=silent)
        if size() == 2:
            for word in ("data=2", "shard=2", "tensor=2"):
                recipe = tiny_recipe(f"parallel.{word}", *BFLOAT16)
                pretrain(recipe, out / "bfloat16" / word, resume=False, say=silent)
            train_compiled(out / "compiled")


def train_compiled(out: Path) -> None:
    """As the paper's recipes are. Blocks are gathered and recomputed all the same."""
    from torch._inductor.compile_fx import compile_fx  # which takes seconds

    gc.collect()  # FSDP's table of earlier models would shrink while the compiler reads it
    compiled: set[str] = set()

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.update(str(node.target) for node in graph.graph.nodes)
        return compile_fx(graph, inputs)

    words = ("train.compile=true", "train.activation_checkpointing=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=look))
        recipe = tiny_recipe("parallel.shard=2", *words, *AR_WORDS)
        pretrain(recipe, out / "ar", resume=False, say=silent)
    (out / f"{rank()}.json").write_text(json.dumps(sorted(compiled)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("split")
    with no_gpu():
        for case, words in CASES.items():
            pretrain(tiny_recipe(*words), out / "alone" / case, resume=False, say=silent)
    for n in (2, 4):
        several.call(n, train_all, out)
    return out


@pytest.mark.parametrize(("layout", "case"), TRAINED)
def test_the_loss_curve_does_not_depend_on_how_the_model_is_split(
    runs: Path, layout: str, case: str
) -> None:
    alone, shared = runs / "alone" / case, runs / layout / case
    for key in ("loss", "val_loss"):
        expected = rows(alone, key)
        assert expected
        assert rows(shared, key) == pytest.approx(expected, abs=2e-6), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_run_exports_the_whole_model(runs: Path, layout: str) -> None:
    ours = load_model(runs / "alone" / "ar")[0].state_dict()
    theirs = load_model(runs / layout / "ar")[0].state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)


def test_a_compiled_step_of_a_split_model_gives_the_same_losses(runs: Path) -> None:
    for key in ("loss", "val_loss"):
        expected = rows(runs / "alone" / "ar", key)
        assert rows(runs / "compiled" / "ar", key) == pytest.approx(expected, abs=1e-5)


def test_blocks_that_are_split_and_recomputed_are_compiled(runs: Path) -> None:
    for process in range(2):
        compiled = json.loads((runs / "compiled" / f"{process}.json").read_text())
        assert any("attention" in name for name in compiled), compiled
        assert any("sigmoid" in name for name in compiled), compiled  # of the MLP's activation


def test_in_mixed_precision_a_split_model_computes_what_a_replicated_one_does(runs: Path) -> None:
    """Its matrices travel in bfloat16, into which autocast would have rounded them."""
    replicated = rows(runs / "bfloat16" / "data=2", "loss")
    assert rows(runs / "bfloat16" / "shard=2", "loss") == pytest.approx(replicated, abs=1e-5)
    # Parts of a divided product are rounded before they are added.
    assert rows(runs / "bfloat16" / "tensor=2", "loss") == pytest.approx(replicated, abs=5e-3)


# --- building ------------------------------------------------------------------------------------

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=17, n_positions=16, n_classes=3)


def build(path: Path, *layouts: list[str]) -> None:
    with processes(ParallelConfig()):
        for words in layouts:
            recipe = tiny_recipe(*words)
            model = new_model(SHAPE, recipe)
            held = sum(local(parameter).numel() for parameter in model.parameters())
            weights = whole(model.state_dict())
            if rank() == 0:
                torch.save(weights, path / f"{'-'.join(words)}.pt")
            _, shard, tensor = recipe.parallel.mesh(size())
            parts = shard * tensor
            n = sum(parameter.numel() for parameter in model.parameters())
            # 3 classes and 17 colours cannot be cut evenly.
            assert held <= n / parts + (1 + 1) * SHAPE.n_embd * 2, (held, n)


def test_every_process_begins_with_its_part_of_the_weights_of_one_process(tmp_path: Path) -> None:
    layouts = [words for n, words in LAYOUTS.values() if n == 4]
    several.call(4, build, tmp_path, *layouts)
    alone = new_model(SHAPE, Recipe()).state_dict()
    paths = list(tmp_path.glob("*.pt"))
    assert len(paths) == len(layouts)
    for path in paths:
        shared = torch.load(path, weights_only=True)
        assert shared.keys() == alone.keys()
        assert all(torch.equal(shared[name], tensor) for name, tensor in alone.items())


@pytest.fixture
def processes_of_a_cluster():
    """Makes this process the first of as many as one likes; nothing is ever sent."""

    def pretend(n: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)

    yield pretend
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("words", "parts"), [(["parallel.shard=64"], 64), (["parallel.shard=8", "parallel.data=8"], 8)]
)
def test_igpt_xl_is_split_on_the_meta_device(
    processes_of_a_cluster: Callable[[int], None], words: list[str], parts: int
) -> None:
    from torch.distributed.fsdp import FSDPModule

    processes_of_a_cluster(64)
    recipe = load_recipe("igpt-xl-imagenet64", words)
    config = recipe.model.resolve(512, 64 * 64, causal=True)
    with torch.device("meta"):
        model = ImageGPT(config)
    n = sum(parameter.numel() for parameter in model.parameters())
    split(model, recipe.parallel, torch.device("cpu"), torch.bfloat16)
    assert isinstance(model, FSDPModule)
    assert all(isinstance(block.attn, FSDPModule) for block in model.blocks)
    held = sum(local(parameter).numel() for parameter in model.parameters())
    assert n == 6_810_875_904
    assert held == pytest.approx(n / parts, rel=1e-3)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_of_igpt_xl_the_mlps_are_divided_and_all_is_split(
    processes_of_a_cluster: Callable[[int], None],
) -> None:
    processes_of_a_cluster(64)
    recipe = load_recipe("igpt-xl-imagenet64", ["parallel.tensor=4", "parallel.shard=16"])
    with torch.device("meta"):
        model = ImageGPT(recipe.model.resolve(512, 64 * 64, causal=True))
    split(model, recipe.parallel, torch.device("cpu"), torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert local(parameter).numel() == parameter.numel() // 64, name
        assert is_split(parameter)
        divided = "tensor" in (parameter.device_mesh.mesh_dim_names or ())
        assert divided == (".mlp." in name)


def test_hidden_units_that_processes_cannot_share_are_a_mistake(tmp_path: Path) -> None:
    words = ["pretrain", "digits", *TINY, "--out", tmp_path / "run", "parallel.tensor=3"]
    refused = several.igpt(3, *words)
    assert refused.wait() == [2, 2, 2]
    assert "parallel.tensor must divide the 64 hidden units" in refused.err
    assert not (tmp_path / "run").exists()


def test_more_processes_than_a_batch_has_pictures(tmp_path: Path) -> None:
    short = ["train.steps=2", "train.eval_every=2", "data.validation_fraction=0.006"]
    one_picture = [*short, "train.batch_size=1"]
    command = ["pretrain", "digits", *TINY, *one_picture, "--out"]
    refused = several.igpt(2, *command, tmp_path / "refused")
    assert refused.wait() == [2, 2]
    assert "train.batch_size (1) must be a multiple of the processes (2)" in refused.err
    divided = several.igpt(2, *command, tmp_path / "divided", "parallel.tensor=2")
    assert divided.wait() == [0, 0], divided.err
    pretrain(tiny_recipe(*one_picture), tmp_path / "one", resume=False, say=silent)
    for key in ("loss", "val_loss"):
        expected = rows(tmp_path / "one", key)
        assert rows(tmp_path / "divided", key) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["parallel.shard=3"],
        ["parallel.data=2", "parallel.shard=4"],
        ["parallel.tensor=2", "parallel.shard=null"],
    ],
)
def test_a_layout_for_another_number_of_processes_is_a_mistake(words: list[str]) -> None:
    with pytest.raises(UserError, match="are not the 1 process that there are"):
        new_model(SHAPE, tiny_recipe(*words))


# --- training ------------------------------------------------------------------------------------


def first_gradients() -> None:
    """Two micro-batches: after the first no gradient was exchanged, after the last all were."""
    shape = replace(SHAPE, n_classes=0)

    def sums(model: ImageGPT) -> list[float]:
        """Of what is there of the gradients, by process."""
        found = [p.grad for p in model.parameters() if p.grad is not None]
        return gather(float(sum(local(g).abs().sum() for g in found)))

    with processes(ParallelConfig()):
        tokens = torch.from_numpy(np.random.default_rng(rank()).integers(0, 17, (2, 1, 16)))
        gradients: list[dict[str, Tensor]] = []
        for words in (["parallel.data=2"], ["parallel.shard=2"]):
            model = new_model(shape, tiny_recipe(*words))
            averaged = average_gradients(ObjectiveModule(model, AR()))
            for i, last in enumerate((False, True)):
                with accumulate(averaged, last):
                    averaged(tokens[i]).sum().backward()
                if not last and words == ["parallel.data=2"]:
                    one, other = sums(model)
                    assert one != other
                if not last and words == ["parallel.shard=2"]:
                    assert sums(model) == [0, 0]  # they stay whole, outside of the parameters
            found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            gradients.append(
                {n: getattr(g, "full_tensor", lambda g=g: g)() for n, g in found.items()}
            )
        replicated, shared = gradients
        assert replicated.keys() >= shared.keys()
        assert "blocks.0.attn.qkv.weight" in shared
        for name, gradient in shared.items():
            torch.testing.assert_close(gradient, replicated[name])
            torch.testing.assert_close(mean_over_processes_(gradient.clone()), gradient)


def test_gradients_are_exchanged_after_the_last_micro_batch_only() -> None:
    several.call(2, first_gradients)


def planned_and_measured(out: Path) -> None:
    """Of a training step, in bytes: how a model is shared -> (planned, measured)."""
    igpt.model.gelu_takes = lambda _: False  # kernels for some processors keep less
    igpt.attention.attention_takes = lambda *_: False
    config, rows = ModelConfig(4, 2, 128, vocab_size=64, n_positions=256), 2
    tokens = torch.zeros(rows, config.n_positions, dtype=torch.long)
    found = {}
    with processes(ParallelConfig()):
        for word in ("parallel.data=2", "parallel.shard=2", "parallel.tensor=2"):
            recipe = tiny_recipe(word)
            model = new_model(config, recipe)
            averaged = average_gradients(ObjectiveModule(model, AR()))
            optimizer = torch.optim.Adam(model.parameters(), fused=True)

            def step(averaged=averaged, optimizer=optimizer) -> None:
                averaged(tokens).mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step()  # makes the moments
            step()  # DistributedDataParallel lays its buckets out anew
            tensors = [t for p in model.parameters() for t in (p, *optimizer.state[p].values())]
            held = sum(local(tensor).nbytes for tensor in tensors)
            data, parts, group = recipe.parallel.mesh(size())
            held += 4 * n_parameters(config) * (data == 2)  # its buckets
            division = Division(rows, data, parts, group, processor=True)
            planned = sum(training_memory(config, division).values())
            found[word] = planned, held + peak_bytes(step)
    (out / f"{launch.rank()}.json").write_text(json.dumps(found))


def test_the_memory_of_a_shared_model_is_what_is_planned(tmp_path: Path) -> None:
    several.call(2, planned_and_measured, tmp_path)
    for path in tmp_path.glob("*.json"):
        found = json.loads(path.read_text())
        for word, (planned, measured) in found.items():
            print(f"{word}: {planned:,} bytes planned, {measured:,} measured")
            assert planned == pytest.approx(measured, rel=0.1), word


def save_in_files(out: Path) -> None:
    igpt.folder.FILE_BYTES = 5_000  # a block or two
    palette = Palette(np.linspace(-1, 1, 17 * 3, dtype=np.float32).reshape(17, 3))
    with processes(ParallelConfig()):
        model = new_model(SHAPE, tiny_recipe("parallel.shard=2"))
        save_model(out, model, Codec(palette, "raster", 4), ("cat", "dog", "emu"))


def test_a_model_too_large_for_one_file_is_exported_from_its_parts(tmp_path: Path) -> None:
    several.call(2, save_in_files, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found, expected = load_model(tmp_path)[0].state_dict(), new_model(SHAPE, Recipe()).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def read_in_parts(folder: Path, out: Path) -> None:
    whole = open_model(folder)
    weights = sum(tensor.nbytes for tensor in whole.weights.values())
    largest = max(tensor.nbytes for tensor in whole.weights.values())
    with processes(ParallelConfig(shard=2)):
        peak = peak_bytes(lambda: fill_model(whole, ParallelConfig(shard=2), default_device()))
    assert peak < 0.6 * weights + largest, f"{peak} of {weights}"
    out.with_suffix(f".{launch.rank()}").touch()


def test_no_process_reads_the_whole_of_a_model_that_is_split(tmp_path: Path) -> None:
    config = ModelConfig(8, 2, 64, vocab_size=17, n_positions=16)
    palette = Palette(np.linspace(-1, 1, 17 * 3, dtype=np.float32).reshape(17, 3))
    save_model(tmp_path, ImageGPT(config), Codec(palette, "raster", 4))
    several.call(2, read_in_parts, tmp_path, tmp_path / "read")
    assert len(list(tmp_path.glob("read.*"))) == 2


# --- checkpoints ---------------------------------------------------------------------------------


def read_back(run: Path, out: Path) -> None:
    """What every layout of so many processes reads from a checkpoint, and the next loss."""
    checkpoint = RunDirectory(run).latest_checkpoint()
    assert checkpoint is not None
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 17, (9, 64)))
    with processes(ParallelConfig()):
        for words in [[], *(w for n, w in LAYOUTS.values() if n == size())]:
            config = ModelConfig(2, 2, 16, vocab_size=17, n_positions=64)
            recipe = tiny_recipe("train.seed=5", *words)
            model = new_model(config, recipe)
            optimizer = torch.optim.Adam(model.parameters(), fused=True)
            checkpoint.load(model, optimizer)
            moments = torch.nn.Module()
            for name, tensor in optimizer_tensors(model, optimizer).items():
                moments.register_buffer(name.replace(".", "_"), tensor)
            state = {**whole(model.state_dict()), **whole(moments.state_dict())}
            with processes(recipe.parallel):
                state["loss"] = picture_nats(model, AR(), tokens, batch_size=2)
            if rank() == 0:
                torch.save(state, out / f"{size()}-{'-'.join(words)}.pt")


def test_a_checkpoint_is_the_same_bits_for_any_number_of_processes_and_any_split(
    runs: Path, tmp_path: Path
) -> None:
    run = runs / "hybrid" / "ar"
    checkpoint = RunDirectory(run).latest_checkpoint()
    assert checkpoint is not None
    assert len(list(checkpoint.folder.glob("shard-00001-*.safetensors"))) > 1
    read_back(run, tmp_path)
    for n in (2, 4):
        several.call(n, read_back, run, tmp_path)
    paths = sorted(tmp_path.glob("*.pt"))
    first, *others = [torch.load(path, weights_only=True) for path in paths]
    assert len(others) == len(LAYOUTS) + 2
    assert len(first) > 60
    for path, other in zip(paths[1:], others, strict=True):
        assert other.keys() == first.keys()
        if "tensor" in path.name:  # products are added in another order
            torch.testing.assert_close(other["loss"], first["loss"])
            other["loss"] = first["loss"]
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())


def save_twice(run: Path) -> None:
    """The second time, another process than the first finds its disk full."""
    with processes(ParallelConfig()):
        directory = RunDirectory(run)
        tensors = {"w": torch.arange(4.0), "v": torch.ones(4)}
        directory.begin_checkpoint(Progress(1), tensors).publish()
        if rank() == 1:
            HuggingFaceStorageWriter.write_data = full  # type: ignore[method-assign]
        with pytest.raises(UserError, match=r"No space left.*the last one is intact"):
            directory.begin_checkpoint(Progress(2), tensors).publish()


def full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_of_one_process_is_an_error_of_all_and_leaves_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    several.call(2, save_twice, tmp_path)
    directory = RunDirectory(tmp_path)
    assert sorted(p.name for p in directory.checkpoints.iterdir()) == ["latest", "step-00000001"]
    checkpoint = directory.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.progress == Progress(1)


def test_a_run_goes_on_with_another_split(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "shard-2/ar", tmp_path / "run"))
    (run / "checkpoints/latest").write_text("step-00000002\n")
    division = ("parallel.shard=2", "parallel.tensor=2")
    went_on = several.igpt(4, "pretrain", "--out", run, "--resume", *division)
    assert went_on.wait() == [0] * 4, went_on.err
    assert rows(run, "loss") == pytest.approx(rows(runs / "alone/ar", "loss"), abs=2e-6)
    other = several.igpt(2, "pretrain", "--out", run, "--resume", "train.lr=1")
    assert other.wait() == [2, 2]
    assert "its recipe has another train.lr" in other.err


QUICK = ["--steps", 4, "--batch-size", 8, "--eval-every", 2, "train.log_every=1"]
TUNE = [*QUICK, "finetune.layer_decay=0.5", "data.validation_fraction=0.025"]


@pytest.fixture(scope="module")
def tuned_alone(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "alone"
    with no_gpu(), pytest.raises(SystemExit, match="0"):
        main(["finetune", *map(str, [tiny_run, *TUNE, "--out", out])])
    return out


@pytest.mark.parametrize("word", ["parallel.shard=2", "parallel.tensor=2"])
def test_fine_tuning_a_split_model_is_the_same(
    tiny_run: Path, tuned_alone: Path, tmp_path: Path, word: str
) -> None:
    shared = several.igpt(2, "finetune", tiny_run, *TUNE, "--out", tmp_path / "shared", word)
    assert shared.wait() == [0, 0], shared.err
    for key in ("loss", "val_accuracy"):
        expected = rows(tuned_alone, key)
        assert expected
        assert rows(tmp_path / "shared", key) == pytest.approx(expected, abs=2e-6)
