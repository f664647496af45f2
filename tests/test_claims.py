"""The paper's first claim, on the digits: who predicts pixels learns what pictures show."""

from __future__ import annotations

from pathlib import Path

import igpt
from conftest import silent
from igpt.pretrain import pretrain
from igpt.recipes import load_recipe
from igpt.run_data import RunData
from igpt.study.methods import LinearMethod, ModelFeatures, make_baselines, needed_pictures
from igpt.study.outcomes import subsets, summarise, try_method


def test_a_hundred_steps_without_labels_make_ten_labels_a_class_reach_further(
    tmp_path: Path,
) -> None:
    steps = [f"train.{name}=100" for name in ("steps", "eval_every", "checkpoint_every")]
    pretrain(load_recipe("digits", steps), tmp_path / "run", resume=False, say=silent)
    pipeline = igpt.load(tmp_path / "run")
    task = RunData.of(tmp_path / "run").task(pipeline.image_size)
    chosen = subsets(task, [10], 3)
    features = ModelFeatures(pipeline, ["all"], "mean", "float32")
    needed = needed_pictures(task, chosen)
    probe = LinearMethod("probe", features, task, needed, components=None, metric="accuracy")
    _, _, untrained, _ = make_baselines(features, probe)
    fitted, baseline = summarise(
        try_method(probe, chosen, silent) + try_method(untrained, chosen, silent)
    )
    assert fitted.accuracy[0] > 1.5 * baseline.accuracy[0] > 0.15
