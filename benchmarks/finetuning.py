"""What fine-tuning adds (paper, sections 2.3, 4.6 and table 5), with the same labels for all.

python benchmarks/finetuning.py RUN [--labels-per-class 100] [--seeds 3] --out runs/finetuning \
    [--rates 0.0003 0.001 0.003] [--variants "L_CLF" "L_GEN + L_CLF"] [section.field=value ...]

Variants: L_CLF alone and L_GEN + L_CLF, from the pretrained weights and from scratch, each at the
learning rate that the validation of seed 0 likes best, as the paper searches it again. A seed draws
the validation pictures too. Every fine-tuning of a BERT model is tested with one mask, five masks'
modal class, and five masks' mean logits. Runs that are there are gone on with, so that the campaign
may be interrupted. All results in --out are drawn into its finetuning.png, beside the probes that
--probes, a file of density.py, has of the same models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from igpt.cli.arguments import add_data, run_data
from igpt.config import METRICS, Ensemble
from igpt.data.labels import labelled
from igpt.data.sources import open_data
from igpt.disk import write_text
from igpt.finetune import finetune, finetune_recipe
from igpt.pipeline import load
from igpt.plots.curves import CYCLE, save_figure
from igpt.probe.linear import metric_value
from igpt.recipes import with_overrides

VARIANTS = {
    "L_CLF from scratch": ("finetune.gen_weight=0", "finetune.from_scratch=true"),
    "L_GEN + L_CLF from scratch": ("finetune.from_scratch=true",),
    "L_CLF": ("finetune.gen_weight=0",),
    "L_GEN + L_CLF": (),
}
Rows = dict[str, dict[str, list[float]]]  # a value for each seed, by metric, by variant
VOTES: dict[str, tuple[Ensemble, int]] = {
    "one mask": ("modal", 1),
    "modal of 5": ("modal", 5),
    "mean logits of 5": ("logits", 5),
}


def say(line: str) -> None:
    print(line, file=sys.stderr)


def accuracies(run: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Both metrics of a fine-tuned run on test, by the way that masks vote; one way for AR."""
    pipeline = load(run)
    given = run_data(args)
    config, source = given.config, open_data(given.config)
    pictures = source.split(given.split)
    test = labelled(
        pictures.select(np.arange(min(args.tested or len(pictures), len(pictures)))),
        source.name,
        pipeline.class_names,
        config,
    ).encode(pipeline.codec)
    tokens = pipeline.tokens(test.images)
    single: dict[str, tuple[Ensemble, int]] = {"": ("modal", 1)}
    ways = single if pipeline.model.config.causal else VOTES
    dtype = pipeline.dtype("auto")
    found = {}
    for way, (ensemble, masks) in ways.items():
        predicted = pipeline.classifier(None, ensemble, masks).predict(tokens, dtype)
        found[way] = {m: metric_value(m, test.labels, predicted.labels) for m in METRICS}
    return found


def fit(args: argparse.Namespace, variant: str, rate: float, seed: int) -> tuple[Path, float]:
    """A fine-tuned run, gone on with if it is there, and its best metric on validation."""
    name = variant.replace(" ", "-").replace("+", "and")
    out = args.out / f"{args.run.name}-{name}-{rate:g}-{seed}"
    options = [
        *VARIANTS[variant],
        *args.overrides,
        f"train.lr={rate}",
        f"train.seed={seed}",
        f"data.split_seed={seed}",
        f"finetune.labels_per_class={args.labels_per_class}",
        f"finetune.metric={args.metric}",
    ]
    recipe = with_overrides(finetune_recipe(args.run), options, "benchmark")
    done = finetune(recipe, out, resume=out.exists(), say=say)
    if done.outcome.signal is not None:
        raise SystemExit(130)
    assert done.best is not None  # it was validated at its last step
    return out, done.best


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in %."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def less(values: list[float], base: list[float]) -> list[float]:
    """By how much `values` are above `base`, one by one."""
    return [value - other for value, other in zip(values, base, strict=True)]


def draw(results: dict[str, dict[str, list[float]]], axis: str) -> Figure:
    """A row for every way to classify, by model: a dot a seed, and their mean."""
    rows = [(model, way, values) for model, ways in results.items() for way, values in ways.items()]
    figure = Figure(figsize=(7.2, 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(results, itertools.cycle(CYCLE)))
    for place, (model, _, values) in enumerate(rows):
        percent = 100 * np.array(values)
        axes.plot(percent, [place] * len(percent), ".", color=colors[model], alpha=0.6)
        axes.plot(percent.mean(), place, "|", color=colors[model], markersize=14)
    axes.set_yticks(range(len(rows)), [f"{model}: {way}" for model, way, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(axis)
    return figure


def all_results(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Of every model whose fine-tunings lie in --out: the metric of each seed, by variant."""
    probes = json.loads(args.probes.read_text()) if args.probes else {}
    found = {}
    for path in sorted(args.out.glob("*.json")):
        rows: Rows = json.loads(path.read_text())
        found[path.stem] = {name: values[args.metric] for name, values in rows.items()}
        if path.stem in probes:
            found[path.stem]["linear probe, mean of five"] = probes[path.stem][args.metric][:1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*")
    add_data(parser, limit=None)
    parser.add_argument("--labels-per-class", type=int, default=100)
    parser.add_argument("--metric", choices=METRICS, default="accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.001])
    parser.add_argument("--tested", type=int, help="first test pictures only; default all")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--probes", type=Path, help="a file of density.py")
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    args = parser.parse_intermixed_args()
    if any(word.startswith("train.lr=") for word in args.overrides):
        parser.error("give --rates, not train.lr")
    saved = args.out / f"{args.run.name}.json"
    rows: Rows = json.loads(saved.read_text()) if saved.exists() else {}
    for variant in args.variants:
        searched = {rate: fit(args, variant, rate, 0)[1] for rate in args.rates}
        rate = max(searched, key=lambda rate: searched[rate])
        say(f"{variant}: validation by rate {searched}")
        for name in [name for name in rows if name.split(", ")[0] == variant]:
            del rows[name]  # is measured again
        for seed in range(args.seeds):
            out, _ = fit(args, variant, rate, seed)
            for way, found in accuracies(out, args).items():
                row = rows.setdefault(f"{variant}{', ' if way else ''}{way}", {})
                for metric, value in found.items():
                    row.setdefault(metric, []).append(value)
            write_text(saved, json.dumps(rows, indent=2) + "\n")
    print(f"| {args.run.name}, {args.labels_per_class} labels a class, on test, % "
          f"| {' | '.join(METRICS)} |\n|---|---|---|")  # fmt: skip
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(spread(values[metric]) for metric in METRICS)} |")
    for variant, way in itertools.product(args.variants, [*VOTES][1:]):
        if (name := f"{variant}, {way}") in rows:
            single = rows[f"{variant}, one mask"]
            gains = [spread(less(rows[name][m], single[m])) for m in METRICS]
            print(f"| {name}, less one mask, seed by seed | {' | '.join(gains)} |")
    axis = f"{args.metric.replace('_', ' ')} on test, %; {args.labels_per_class} labels a class"
    target = args.out / "finetuning.png"
    save_figure(draw(all_results(args), axis), target)


if __name__ == "__main__":
    main()
