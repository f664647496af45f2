"""`igpt predict`: classes of pictures, by a fine-tuned model or a probe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.arguments import (
    add_data,
    add_images,
    add_precision,
    add_run,
    open_pictures,
    positive,
    refuse_two_sources,
)
from igpt.cli.progress import telling
from igpt.cli.report import Report, and_skipped
from igpt.config import ENSEMBLES, Say, UserError

if TYPE_CHECKING:
    from igpt import classify
    from igpt.pipeline import Pipeline
    from igpt.types import Labels

EXAMPLE = "igpt predict runs/digits-classes --split test --confusion confusion.png"

SHOWN = 20  # pictures of the table on the terminal


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_images(parser)
    add_data(parser)
    parser.add_argument(
        "--probe", type=Path, metavar="FOLDER", help="default RUN/probe, for a run without a head"
    )
    parser.add_argument(
        "--mask-ensemble",
        choices=ENSEMBLES,
        help="how the masks of a BERT model vote; default modal",
    )
    masks = "of a BERT model: masks that vote; default 5 (probes were tested with one)"
    parser.add_argument("--masks", type=positive, help=masks)
    add_precision(parser, "auto")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all predictions there")
    parser.add_argument("--confusion", type=Path, metavar="PNG", help="draw the confusion matrix")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.classify import as_classes, report
    from igpt.disk import require_file, write_csv
    from igpt.pipeline import load
    from igpt.plots.curves import confusion_figure, save_figure
    from igpt.run_data import load_named

    refuse_two_sources(args)
    if args.confusion and args.confusion.suffix.lower() != ".png":
        raise UserError(f"--confusion draws a .png, not {args.confusion.name}")
    for path in filter(None, (args.csv, args.confusion)):
        require_file(path)
    pipeline = load(args.run)
    classifier = _classifier(pipeline, args)
    pictures = load_named(open_pictures(args, classifier.learned_from), pipeline)
    known = pictures.labels
    if known is not None:
        source = args.data or str(args.run)
        known = as_classes(known, pictures.class_names, classifier.class_names, source)
    count = len(pictures.names)
    missing = count if known is None else int((known < 0).sum())  # labels
    if args.confusion and missing == count:
        why = ", and files by name bring none: give their folder as --data" if args.images else ""
        raise UserError(f"--confusion needs labelled pictures{why}")
    say(f"{count:,} pictures, {len(classifier.class_names)} classes")
    tokens = pipeline.tokens(pictures.images)
    check = telling(count, say, classifier.masks)
    prediction = classifier.predict(tokens, pipeline.dtype(args.precision), check)
    rows = partial(_rows, pictures.names, prediction, known)
    if args.csv:
        write_csv(args.csv, rows(every=True))
    every = list(rows(every=True)) if args.json else []
    skipped = pictures.skipped
    values: dict[str, Any] = {"count": count, "skipped": len(skipped), "predictions": every}
    lines = _table(list(islice(rows(every=False), SHOWN)), count, args.csv)
    if known is not None and missing < count:
        if missing:
            say(f"warning: {missing:,} pictures without a label are left out of the scores")
        result = report(known, prediction)
        values |= _report_values(result, classifier.class_names)
        lines += ["", *_report_text(result, classifier.class_names)]
        if args.confusion:
            figure = confusion_figure(result.confusion, classifier.class_names)
            save_figure(figure, args.confusion)
            lines += ["", f"confusion matrix: {args.confusion}"]
    if skipped:
        lines += ["", f"{count:,} pictures{and_skipped(len(skipped))}"]
    return Report("\n".join(lines), values)


def _classifier(pipeline: Pipeline, args: argparse.Namespace) -> classify.Classifier:
    """The classifier to use; UserError for options of masks with a model that is not BERT."""
    from igpt.classify import MASKS

    if pipeline.model.config.causal and (args.mask_ensemble or args.masks):
        raise UserError("--mask-ensemble and --masks are for a BERT model")
    return pipeline.classifier(args.probe, args.mask_ensemble or "modal", args.masks or MASKS)


def _rows(
    pictures: Sequence[str],
    prediction: classify.Prediction,
    known: Labels | None,
    *,
    every: bool,
) -> Iterator[dict[str, Any]]:
    """A row for each picture: its predicted class and its true one if known.

    With the probabilities of `every` class if asked: of many classes all take gigabytes.
    """
    names = prediction.class_names
    columns = [f"p_{name}" for name in names]
    chosen = zip(pictures, prediction.labels, prediction.probabilities, strict=True)
    for i, (picture, label, p) in enumerate(chosen):
        row = {"picture": picture, "label": names[label], "probability": _rounded(p[label])}
        if known is not None:
            row["true"] = names[known[i]] if known[i] >= 0 else ""
        if every:
            row |= {column: _rounded(value) for column, value in zip(columns, p, strict=True)}
        yield row


def _rounded(probability: float) -> float:
    return round(float(probability), 6)


def _table(rows: Sequence[dict[str, Any]], count: int, csv: Path | None) -> list[str]:
    """The first of `count` pictures: probability, predicted label, and the true one if known.

    `csv` is the file that has all.
    """
    columns = [name for name in ("label", "true") if name in rows[0]]
    shown = [dict.fromkeys(columns, "") | row for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in columns}

    def line(probability: str, picture: str, cells: Mapping[str, str]) -> str:
        middle = "  ".join(f"{cells[name]:<{width}}" for name, width in widths.items())
        return f"{probability}  {middle}  {picture}"

    head = line("probability", "picture", {name: name for name in columns})
    body = [line(f"{row['probability']:11.3f}", row["picture"], row) for row in shown]
    if csv:
        body.append(f"all {count:,} with every class's probability: {csv}")
    elif count > len(rows):
        body.append(f"… {count - len(rows):,} more: --csv or --json gives all")
    return [head, *body]


def _report_values(result: classify.Report, classes: Sequence[str]) -> dict[str, Any]:
    per_class = {
        name: {"precision": p, "recall": r if count else None, "count": int(count)}
        for name, p, r, count in zip(
            classes,
            result.precision.tolist(),
            result.recall.tolist(),
            result.support,
            strict=True,
        )
    }
    return {
        "accuracy": result.accuracy,
        "balanced_accuracy": result.balanced_accuracy,
        "calibration_error": result.calibration_error,
        "classes": per_class,
        "confusion": result.confusion.tolist(),
    }


def _report_text(result: classify.Report, classes: Sequence[str]) -> list[str]:
    rows = zip(classes, result.precision, result.recall, result.support, strict=True)
    return [
        f"accuracy {100 * result.accuracy:.1f} %   balanced {100 * result.balanced_accuracy:.1f} %"
        f"   calibration error {100 * result.calibration_error:.1f} %",
        "precision  recall  count",
        *(
            f"{100 * p:8.1f} {_recall(r, count):>7} {count:7,}  {name}"
            for name, p, r, count in rows
        ),
    ]


def _recall(recall: float, count: int) -> str:
    return f"{100 * recall:.1f}" if count else ""
