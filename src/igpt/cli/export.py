"""`igpt export`: a model in a format for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.arguments import add_run
from igpt.cli.report import Report
from igpt.config import Say

EXAMPLE = "igpt export onnx runs/digits --out digits-onnx"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["onnx"], help="onnx: graphs for ONNX Runtime and others")
    add_run(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace, say: Say) -> Report:
    import numpy as np

    from igpt.disk import new_folder
    from igpt.interop.onnx import export_onnx
    from igpt.pipeline import load

    with new_folder(args.out) as folder:
        pipeline = load(args.run)
        differences = export_onnx(pipeline.model, folder)
        pipeline.palette.save(folder / "palette.npy")
        np.save(folder / "order.npy", pipeline.codec.pi)
    shown = ", ".join(f"{name}.onnx ({value:.1e})" for name, value in differences.items())
    return Report(
        f"{shown}, palette.npy [colours, 3], order.npy: {args.out}\n"
        "(in brackets: the largest difference between ONNX Runtime and the model)",
        {"out": str(args.out), "differences": differences},
    )
