"""The campaigns of the documents, each on a small run: scripts that nobody runs decay."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from conftest import is_sheet, silent, tiny_recipe
from igpt.pretrain import pretrain

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
QUICK = ["train.steps=2", "train.batch_size=8", "train.warmup_steps=1", "train.eval_every=1"]
Campaign = Callable[..., str]


@pytest.fixture
def campaign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Campaign:
    """Runs a script in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(script: str, *words: object) -> str:
        path = BENCHMARKS / f"{script}.py"
        monkeypatch.setattr("sys.argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capfd.readouterr().out

    return run


def test_probes_beside_density(campaign: Campaign, tiny_run: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "tiny-step2"
    shutil.copytree(tiny_run, earlier)
    printed = campaign("density", earlier, tiny_run, "--labels-per-class", 2)
    rows = json.loads((tmp_path / "density.json").read_text())
    assert list(rows) == ["tiny-step2", "tiny"]
    assert rows["tiny"] == rows["tiny-step2"]
    assert f"{rows['tiny']['nats_per_pixel']:.4f}" in printed
    assert is_sheet(tmp_path / "density.png")
    assert is_sheet(tmp_path / "density-layers.png")


def test_fine_tunings_beside_each_other(campaign: Campaign, tiny_run: Path, tmp_path: Path) -> None:
    words = [tiny_run, "--labels-per-class", 2, "--seeds", 2, "--tested", 40, "--out", "ft", *QUICK]
    printed = campaign("finetuning", *words, "--rates", 0.001, 0.01, "--variants", "L_GEN + L_CLF")
    rows = json.loads((tmp_path / "ft" / "tiny.json").read_text())
    assert len(rows["L_GEN + L_CLF"]["accuracy"]) == 2
    assert "| L_GEN + L_CLF |" in printed
    assert len([path for path in (tmp_path / "ft").iterdir() if path.is_dir()]) == 3
    assert is_sheet(tmp_path / "ft" / "finetuning.png")


def test_a_search_of_probes(campaign: Campaign, tiny_run: Path) -> None:
    few = ["--labels-per-class", 2, 4, "--seeds", 1]
    printed = campaign("probe_search", tiny_run, "--layer", 1, "--grid", 4, *few)
    rows = [line for line in printed.splitlines() if "±" in line]
    assert len(rows) > 12
    assert all(row.count("±") == 2 for row in rows)


def test_few_labels_of_two_probes(campaign: Campaign, igpt, tiny_run: Path, tmp_path: Path) -> None:
    for out, sizes in (("few", (1, 2)), ("more", (4,))):
        few = ["--labels-per-class", *sizes, "--seeds", 2, "--out", tmp_path / out]
        igpt("probe", tiny_run, "--layer", 1, *few)
    folders = [tmp_path / "few", tmp_path / "more"]
    assert "| linear probe less | 1 | 2 | 4 |" in campaign(
        "few_labels", *folders, "--out", tmp_path / "both.png"
    )
    assert is_sheet(tmp_path / "both.png")


def test_margins_are_of_the_same_labels() -> None:
    margins = runpy.run_path(str(BENCHMARKS / "few_labels.py"))["margins"]
    outcomes = [
        {"method": method, "labels_per_class": 4, "seed": seed, "accuracy": value}
        for method, values in (("ours", (0.5, 0.7, 0.6)), ("theirs", (0.4, 0.4, 0.65)))
        for seed, value in enumerate(values)
    ]
    # 10, 30 and -5 points
    assert margins(outcomes, "accuracy").splitlines()[-1] == "| theirs | 11.7 ± 17.6 (2 of 3) |"


def test_masks_that_vote(campaign: Campaign, tmp_path: Path) -> None:
    run = tmp_path / "bert"
    pretrain(tiny_recipe("objective=bert"), run, resume=False, say=silent)
    printed = campaign("mask_votes", run, "--labels-per-class", 2)
    rows = [line for line in printed.splitlines() if "±" in line]
    assert len(rows) == 5  # three ways to vote, and what two of them gain
    assert rows[0].startswith("| bert, one mask |")


@pytest.mark.parametrize("labels", [[], ["--labels-per-class", 2]])
def test_a_cnn_of_the_same_minutes(
    campaign: Campaign, tiny_run: Path, labels: list[object]
) -> None:
    words = ["--minutes", 0.02, "--seeds", 2, "--least-steps", 3]
    printed = campaign("same_minutes_cnn", tiny_run, *words, *labels)
    assert "0.0 minutes at most" in printed
    assert printed.count("±") == 2


def test_a_row_of_the_bench(tmp_path: Path) -> None:
    words = ["--rows", "causal attention", "--rounds", "1", "--out", tmp_path]
    command = [sys.executable, BENCHMARKS / "bench.py", *words]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert list(row["results"]) == ["scaled_dot_product_attention", "igpt", "the machine's limit"]
    for result in row["results"].values():
        assert result["lowest"] == result["median"] == result["highest"] > 0
        assert result["peak_bytes"] > 2**20
    ratio = (
        row["results"]["igpt"]["median"] / row["results"]["scaled_dot_product_attention"]["median"]
    )
    assert f"| {ratio:.1f} |" in printed
    assert is_sheet(tmp_path / "bench.png")


def test_what_start_up_takes_is_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    start_up = import_module("start_up")
    taken = start_up._taken("--help", {})
    assert 0 < taken.seconds < 60
    assert taken.peak_bytes > 2**20
    table = start_up.table({"igpt x, until its first step": [taken, taken]})
    assert f"| `igpt x`, until its first step | {taken.seconds:.2f} (" in table
    with pytest.raises(RuntimeError, match="exit status 2"):
        start_up._taken("info no-such-model", {})


def test_costs_are_told_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    costs = import_module("costs")
    cost = costs.Cost(seconds=0.002, least=0.001, most=0.004, flops=4e9, peak_bytes=2**30)
    points = [
        costs.Point(line, value, 1000, cost, cost) for line in costs.LINES for value in (8, 16)
    ]
    assert costs.row(points[0]) == (
        "| tokens 8 | 2.0 (1.0 to 4.0) | 2000 | 1.00 GiB | 2 (1 to 4) | 1.00 GiB |"
    )
    costs.draw(points, tmp_path / "costs.png")
    assert is_sheet(tmp_path / "costs.png")


def test_results_are_compared_without_times_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    numbers = import_module("same_numbers").numbers
    log = [{"step": 1, "loss": 0.5, "pictures_per_second": 3}]
    assert numbers(log) == [{"step": 1, "loss": 0.5}]
    assert numbers({"a": [{"picture": "x", "p": 0.1}]}) == {"a": [{"p": 0.1}]}
