"""`igpt export`: a model in a format for other programs."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from uuid import uuid4

from igpt.cli.arguments import add_run
from igpt.cli.report import Report
from igpt.config import Say, UserError

EXAMPLE = "igpt export onnx runs/digits --out digits-onnx"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["onnx"], help="onnx: graphs for ONNX Runtime and others")
    add_run(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def run(args: argparse.Namespace, say: Say) -> Report:
    import numpy as np

    from igpt.disk import require_new_folder
    from igpt.interop.onnx import export_onnx
    from igpt.pipeline import load

    out = args.out.resolve()
    require_new_folder(out)
    if out == Path.cwd():  # it is replaced by a new one
        raise UserError("--out is the current folder: name a new one")
    pipeline = load(args.run)
    # Under another name until all graphs are written and compared with the model.
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        differences = export_onnx(pipeline.model, temporary)
        pipeline.palette.save(temporary / "palette.npy")
        np.save(temporary / "order.npy", pipeline.codec.pi)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shown = ", ".join(f"{name}.onnx ({value:.1e})" for name, value in differences.items())
    return Report(
        f"{shown}, palette.npy [colours, 3], order.npy: {args.out}\n"
        "(in brackets: the largest difference between ONNX Runtime and the model)",
        {"out": str(args.out), "differences": differences},
    )
