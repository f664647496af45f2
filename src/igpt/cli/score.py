"""`igpt score`: how surprising each picture is and where, and which set does not belong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.arguments import (
    add_data,
    add_images,
    add_precision,
    add_run,
    limited,
    open_pictures,
    positive,
    refuse_two_sources,
    run_data,
)
from igpt.cli.progress import telling
from igpt.cli.report import Report, and_skipped
from igpt.config import Say, UserError

if TYPE_CHECKING:
    from igpt.order import Encoded
    from igpt.pipeline import Pipeline
    from igpt.run_data import Named
    from igpt.score import Scores, Signal

EXAMPLE = "igpt score runs/digits --split test --ood FOLDER --out scores"

LISTED = 20  # pictures that the report names


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_images(parser)
    add_data(parser)
    parser.add_argument(
        "--ood",
        metavar="OTHER",
        help="pictures to tell apart from these: anything that --data takes",
    )
    parser.add_argument("--ood-split", metavar="S", help="of OTHER; default test")
    parser.add_argument(
        "--maps",
        type=positive,
        default=8,
        metavar="N",
        help="pictures, the least likely first, whose surprise is drawn; default 8",
    )
    parser.add_argument(
        "--top", type=positive, default=8, metavar="N", help="pictures on each end; default 8"
    )
    add_precision(parser, "float32")
    parser.add_argument(
        "--out", type=Path, default=Path("scores"), metavar="FOLDER", help="default scores"
    )


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.disk import require_folder, write_csv
    from igpt.pipeline import load
    from igpt.run_data import RunData, load_named
    from igpt.score import out_of_distribution, score

    _check(args)
    require_folder(args.out)
    pipeline = load(args.run)
    given = load_named(open_pictures(args), pipeline)
    other = None
    if args.ood:
        source = RunData.of(args.run, args.ood, args.ood_split, option="--ood-split")
        other = load_named(limited(source.pictures(), args.limit), pipeline)
    say(f"{len(given.images):,} pictures of {pipeline.image_size}x{pipeline.image_size}")

    def measure(pictures: Named) -> Scores:
        check = telling(len(pictures.names), say)
        images, names = pictures.images, pictures.names
        return score(pipeline, images, names, precision=args.precision, check=check)

    scores, outside = measure(given), measure(other) if other else None

    for file in ("extremes.png", "ood.png", "ood.csv"):  # left by an earlier call
        (args.out / file).unlink(missing_ok=True)
    table = args.out / "scores.csv"
    values = _values(scores) | {"skipped": len(given.skipped)}
    write_csv(table, values["pictures"])
    files = [table, *_sheets(args, pipeline, given.images, scores)]
    if other and outside:
        signals = out_of_distribution(scores, outside)
        values["ood"] = _ood_values(args.ood, outside, signals) | {"skipped": len(other.skipped)}
        write_csv(args.out / "ood.csv", values["ood"]["pictures"])
        files += [args.out / "ood.csv", _figure(args, scores, outside, signals)]
    values["files"] = [str(file) for file in files]
    return Report(_text(values, scores, table), values)


def _check(args: argparse.Namespace) -> None:
    refuse_two_sources(args)
    if args.ood_split and not args.ood:
        raise UserError("--ood-split is of --ood's pictures: give --ood")


def _sheets(
    args: argparse.Namespace, pipeline: Pipeline, images: Encoded, scores: Scores
) -> list[Path]:
    """Draw the surprise of the least likely pictures and, of two or more, the extremes."""
    from igpt.plots.scores import extremes_sheet, surprise_sheet
    from igpt.plots.sheets import save_image

    some = images[scores.ranking[::-1][: args.maps]]
    surprise, extremes = args.out / "surprise.png", args.out / "extremes.png"
    nats = pipeline.surprise(some, precision=args.precision)
    save_image(surprise_sheet(pipeline.quantize(some), nats), surprise)
    top = min(args.top, len(images) // 2)  # no picture stands on both ends
    if top == 0:
        return [surprise]
    ranking, bits = scores.ranking, scores.bits_per_pixel
    likely, unlikely = ranking[:top], ranking[::-1][:top]
    shown = [pipeline.quantize(images[ends]) for ends in (likely, unlikely)]
    save_image(extremes_sheet(shown[0], bits[likely], shown[1], bits[unlikely]), extremes)
    return [surprise, extremes]


def _figure(
    args: argparse.Namespace, inside: Scores, outside: Scores, signals: tuple[Signal, Signal]
) -> Path:
    from igpt.data.sources import short_name
    from igpt.plots.curves import save_figure
    from igpt.plots.scores import ood_figure

    figure: Path = args.out / "ood.png"
    scored = "the pictures given" if args.images else short_name(run_data(args).config.source)
    labels = (
        f"{scored} ({len(inside.names):,})",
        f"{short_name(args.ood)} ({len(outside.names):,})",
    )
    save_figure(ood_figure(*signals, *labels), figure)
    return figure


def _rows(scores: Scores) -> list[dict[str, Any]]:
    """A row for each picture, for the .csv files and --json."""
    columns = (
        scores.names,
        scores.nats_per_pixel.tolist(),
        scores.bits_per_pixel.tolist(),
        scores.compressed_bits_per_pixel.tolist(),
        scores.corrected.tolist(),
    )
    kinds = ("bits_per_pixel", "compressed_bits_per_pixel", "corrected_bits_per_pixel")
    keys = ("picture", "nats_per_pixel", *kinds)
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(scores: Scores) -> dict[str, Any]:
    ranking = scores.ranking
    return {
        "count": len(scores.names),
        "nats_per_pixel": float(scores.nats_per_pixel.mean()),
        "bits_per_pixel": float(scores.bits_per_pixel.mean()),
        "compressed_bits_per_pixel": float(scores.compressed_bits_per_pixel.mean()),
        "most_likely": scores.names[ranking[0]],
        "least_likely": scores.names[ranking[-1]],
        "pictures": _rows(scores),
    }


def _ood_values(name: str, outside: Scores, signals: tuple[Signal, Signal]) -> dict[str, Any]:
    raw, corrected = signals
    return {
        "data": name,
        "count": len(outside.names),
        "bits_per_pixel": float(outside.bits_per_pixel.mean()),
        "compressed_bits_per_pixel": float(outside.compressed_bits_per_pixel.mean()),
        "auroc_raw": raw.auroc,
        "auroc_raw_error": raw.standard_error,
        "auroc_corrected": corrected.auroc,
        "auroc_corrected_error": corrected.standard_error,
        "pictures": _rows(outside),
    }


def _text(values: dict[str, Any], scores: Scores, table: Path) -> str:
    """The least likely pictures, the means over the set, and how well another is told apart."""
    listed = [values["pictures"][i] for i in scores.ranking[::-1][:LISTED]]
    width = max(len("picture"), *(len(row["picture"]) for row in listed))
    lines = [f"{'picture':<{width}}  nats/pixel  bits/pixel  compressed   corrected"]
    for row in listed:
        name, *numbers = row.values()
        lines.append(f"{name:<{width}}" + "".join(f"  {number:10.4f}" for number in numbers))
    if values["count"] > LISTED:
        lines.append(f"… {values['count'] - LISTED:,} likelier ones in {table}")
    lines += [
        "",
        f"{values['count']:,} pictures{and_skipped(values['skipped'])}: "
        f"{values['nats_per_pixel']:.4f} nats/pixel   "
        f"{values['bits_per_pixel']:.4f} bits/pixel   "
        f"compressed {values['compressed_bits_per_pixel']:.4f} bits/pixel",
    ]
    if values["count"] > 1:
        lines.append(f"most likely {values['most_likely']}")
    if ood := values.get("ood"):
        lines += _ood_lines(ood)
    return "\n".join([*lines, "", *values["files"]])


def _auroc(ood: dict[str, Any], kind: str) -> str:
    error = ood[f"auroc_{kind}_error"]
    return f"{ood[f'auroc_{kind}']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _ood_lines(ood: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"{ood['count']:,} pictures of {ood['data']}: {ood['bits_per_pixel']:.4f} bits/pixel   "
        f"compressed {ood['compressed_bits_per_pixel']:.4f} bits/pixel",
        "AUROC of telling them apart (1: always, 0.5: by chance), ± its standard error",
        f"  {_auroc(ood, 'raw')}  raw likelihood",
        f"  {_auroc(ood, 'corrected')}  corrected for complexity: bits/pixel less compressed",
    ]
    if round(ood["auroc_raw"], 3) < 0.5:
        lines.append("below 0.5: the model finds the other pictures likelier than these")
    return lines
