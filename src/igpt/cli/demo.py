"""`igpt demo`: the main job on handwritten digits, from pictures to pictures."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.report import Report, stopped
from igpt.config import Say

if TYPE_CHECKING:
    from igpt.config import Recipe
    from igpt.data.pictures import Source
    from igpt.order import Encoded
    from igpt.pipeline import Pipeline
    from igpt.types import Pixels

EXAMPLE = "igpt demo --out runs/demo"

COMPLETED = 8  # test pictures on the completion sheet
VARIANTS = 5  # completions of each
SAMPLES = 64


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default runs/demo")
    parser.add_argument("--steps", type=int, help="train shorter or longer than the recipe")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.checkpoint import RunDirectory
    from igpt.data.decode import decode_all
    from igpt.data.sources import open_source
    from igpt.pipeline import load
    from igpt.pretrain import pretrain

    recipe, resume = _recipe(args), RunDirectory(args.out).exists()
    outcome = pretrain(recipe, args.out, resume=resume, say=say).outcome
    if outcome.signal is not None:
        again = shlex.join(["igpt", "demo", "--out", str(args.out)])
        reached = {"run": str(args.out), "step": outcome.step}
        return stopped(outcome.signal, f"step {outcome.step}", again, reached)
    pipeline = load(args.out)
    source = open_source(recipe.data.source)
    test = decode_all(source.split(recipe.data.test_split), pipeline.image_size).images
    values = _scores(pipeline, recipe, source, test)
    figures = _figures(pipeline, args.out, values, test[:COMPLETED])
    return Report(_text(args.out, values, figures), {**values, "figures": list(map(str, figures))})


def _recipe(args: argparse.Namespace) -> Recipe:
    """That of the digits; without --steps, a run that goes on keeps its own number."""
    from igpt.checkpoint import RunDirectory
    from igpt.recipes import load_recipe

    run, steps = RunDirectory(args.out), args.steps
    if steps is None and run.exists():
        steps = run.recipe().train.steps
    return load_recipe("digits", [] if steps is None else [f"train.steps={steps}"])


def _scores(
    pipeline: Pipeline, recipe: Recipe, source: Source, test: Pixels | Encoded
) -> dict[str, float]:
    """Bits a pixel on the `test` pictures, by the model and the baselines, and their number."""
    from igpt.baselines.counts import context_nats, position_histogram_nats
    from igpt.data.decode import decode_all
    from igpt.data.splits import training_splits

    size = pipeline.image_size
    train, held_out = training_splits(source, recipe.data, recipe.split_seed)
    sets = [decode_all(split, size).images for split in (train, held_out)]
    a, b, c = (pipeline.codec.raster_tokens(images) for images in (*sets, test))
    k = pipeline.palette.n_colors
    return {
        "bits_per_pixel": pipeline.likelihood(test).bits_per_pixel,
        "position_histogram": position_histogram_nats(a, b, c, k) / math.log(2),
        "context_model": context_nats(a, b, c, k, size) / math.log(2),
        "count": len(test),
    }


def _figures(
    pipeline: Pipeline, out: Path, values: dict[str, float], originals: Pixels | Encoded
) -> tuple[Path, ...]:
    import numpy as np

    from igpt.checkpoint import RunDirectory
    from igpt.monitor import read_metrics
    from igpt.plots.curves import loss_figure, save_figure
    from igpt.plots.sheets import completion_sheet, palette_sheet, picture_sheet, save_image
    from igpt.sample import Sampling

    run = RunDirectory(out)
    names = ("samples", "completions", "palette", "loss")
    samples, completions, palette, loss = (run.figures / f"{name}.png" for name in names)
    painted = np.concatenate(list(pipeline.sample_batches(SAMPLES, Sampling())))
    save_image(picture_sheet(painted), samples)
    batches = pipeline.complete_batches(originals, 0.5, VARIANTS, Sampling())
    given, shown = pipeline.given_mask(0.5), pipeline.quantize(originals)
    save_image(completion_sheet(given, np.concatenate(list(batches)), shown), completions)
    save_image(palette_sheet(pipeline.palette.colors), palette)
    levels = {
        "independent pixels": values["position_histogram"] * math.log(2),
        "left and upper neighbour": values["context_model"] * math.log(2),
    }
    save_figure(loss_figure(read_metrics(run.metrics), levels), loss)
    return samples, completions, palette, loss


def _text(out: Path, values: dict[str, float], figures: tuple[Path, ...]) -> str:
    run = shlex.quote(str(out))
    return "\n".join(
        [
            "",
            f"bits per pixel on {values['count']:.0f} held-out digits (less is better)",
            f"  {values['position_histogram']:.3f}  a histogram of the colours at each position",
            f"  {values['context_model']:.3f}  counts given the left and the upper neighbour",
            f"  {values['bits_per_pixel']:.3f}  this Image GPT",
            "",
            "look at",
            *(f"  {figure}" for figure in figures),
            "",
            "then try",
            f"  igpt sample {run} -n 16 --temperature 0.8 --out samples.png",
            f"  igpt complete {run} --data digits --limit 8 --keep 0.25 -n 6 --out completions.png",
            "  igpt pretrain pictures32 --data YOUR_PICTURES --out runs/mine",
        ]
    )
