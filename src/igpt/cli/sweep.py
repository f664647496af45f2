"""`igpt sweep`: every combination of a few fields' values as a run, compared by cost."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import add_short_flags, number_of_labels, recipe_and_changes
from igpt.cli.pretrain import SHORT
from igpt.cli.report import Report, stopped
from igpt.config import Say, UserError
from igpt.recipes import shipped_recipes

if TYPE_CHECKING:
    from igpt.sweep import Result

EXAMPLE = "igpt sweep digits --grid image_size=4,8 colors=4,16 --out runs/sweep train.steps=200"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "igpt sweep RECIPE --grid FIELD=A,B ... [--out FOLDER] [options] [section.field=value ...]"
    )
    parser.add_argument(
        "words",
        metavar="RECIPE",
        nargs="*",
        help=f"a .yaml file or one of: {', '.join(shipped_recipes())}; then fields that are the "
        "same in all runs, by their dotted names, like train.steps=200",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        required=True,
        metavar="FIELD=A,B",
        help="fields of the recipe and their values: image_size, colors, order, objective, model, "
        "n_layer, lr or any other",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="of the runs; the same goes on; default runs/sweep-RECIPE",
    )
    parser.add_argument(
        "--labels-per-class",
        type=number_of_labels,
        metavar="N",
        help="that the probe is given; default all",
    )
    add_short_flags(parser, SHORT)


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.plots.curves import save_figure, sweep_figure
    from igpt.sweep import make_points, sweep

    name, changes = recipe_and_changes(args, SHORT)
    if args.out is None:
        args.out = Path("runs") / f"sweep-{Path(name).stem}"
    points = make_points(name, args.grid, changes, args.out)
    swept = sweep(points, args.out, args.labels_per_class, say)
    if swept.diverged and not swept.results and swept.stopped is None:
        raise UserError("every run diverged: try smaller values of lr, or train.grad_clip=1")
    runs = [asdict(result) for result in swept.results]
    values = {"out": str(args.out), "runs": runs, "diverged": swept.diverged}
    lines = _table(swept.results)
    if swept.results:
        figure = args.out / "sweep.png"
        save_figure(sweep_figure(swept.results), figure)
        lines += ["", f"runs, sweep.json and sweep.png: {args.out}"]
    if swept.diverged:
        lines += ["", f"diverged, and left out: {', '.join(swept.diverged)}"]
    if swept.stopped is None:
        return Report("\n".join(lines), values)
    point, outcome = swept.stopped
    assert outcome.signal is not None
    where = f"step {outcome.step} of {point.name}"
    report = stopped(outcome.signal, where, _command(name, changes, args), values)
    return replace(report, text="\n".join([*lines, report.text]))


def _command(recipe: str, changes: list[str], args: argparse.Namespace) -> str:
    """The command that goes on with the sweep."""
    words = ["igpt", "sweep", recipe, *changes]
    words += ["--grid", *args.grid, "--out", str(args.out)]
    if args.labels_per_class is not None:
        words += ["--labels-per-class", str(args.labels_per_class)]
    return shlex.join(words)


def _table(results: list[Result]) -> list[str]:
    """A line for each run, under a head of two lines; no lines without results."""
    width = max((len(result.name) for result in results), default=0)
    head = [
        f"{'':<{width}}  {'':32}  {'validation':>10}  {'':12}  {'':11}  {'test':>10}",
        f"{'':<{width}}  {'parameters':>12}  {'FLOPs':>9}  {'minutes':>7}"
        + f"  {'nats/pixel':>10}  {'nats/picture':>12}  accuracy, %" * 2,
    ]
    rows = [
        f"{row.name:<{width}}  {row.parameters:12,}  {row.flops:9.2e}  {row.minutes:7.1f}  "
        f"{row.val_nats_per_pixel:10.4f}  {row.val_nats_per_picture:12.1f}  "
        f"{_percent(row.val_accuracy):>11}  "
        f"{row.test_nats_per_pixel:10.4f}  {row.test_nats_per_picture:12.1f}  "
        f"{_percent(row.accuracy):>11}  {_deviation(row)}"
        for row in results
    ]
    return [*head, *(row.rstrip() for row in rows)] if results else []


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.1f}"


def _deviation(row: Result) -> str:
    return f"± {100 * row.accuracy_deviation:.1f}" if row.accuracy_deviation else ""
