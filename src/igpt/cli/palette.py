"""`igpt palette`: fit the colour clusters of a set of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from igpt.cli.arguments import positive
from igpt.cli.report import Report
from igpt.config import Say, UserError

EXAMPLE = "igpt palette --data digits --size 8 --colors 16 --out palette.npy"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, metavar="D", help="Hugging Face id, folder, .npy/.npz or `digits`"
    )
    parser.add_argument("--split", default="train", help="default train")
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures")
    parser.add_argument(
        "--size", type=positive, required=True, help="side of the pictures, in pixels"
    )
    parser.add_argument("--colors", type=int, default=512, help="default 512")
    parser.add_argument(
        "--seed", type=int, default=0, help="of all that is drawn at random; default 0"
    )
    parser.add_argument("--out", type=Path, required=True, help="clusters, as .npy")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also draw the colours")


def run(args: argparse.Namespace, say: Say) -> Report:
    from igpt.config import PaletteConfig
    from igpt.data.decode import decode_all
    from igpt.data.sources import open_source
    from igpt.data.splits import evaluation_split
    from igpt.disk import require_file
    from igpt.order import need_pixels
    from igpt.palette import Palette
    from igpt.parallel import launch
    from igpt.parallel.meeting import meeting
    from igpt.plots.sheets import palette_sheet, require_picture, save_image

    if launch.size() > 1:
        meeting()  # or the first would wait for the others when it has a mistake to tell
    if not launch.is_first():  # k-means is the work of one process, and the others end here
        return Report("", {})
    PaletteConfig(colors=args.colors)  # it checks the range
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    require_file(args.out)
    if args.sheet:
        require_picture(args.sheet)
    source = open_source(args.data, image_column=args.image_column)
    images = need_pixels(decode_all(evaluation_split(source, args.split), args.size).images)
    say(f"fitting {args.colors} colours on {len(images):,} pictures")
    palette = Palette.fit(images, args.colors, args.seed)
    psnr = palette.psnr(images)
    palette.save(args.out)
    if args.sheet:
        save_image(palette_sheet(palette.colors), args.sheet)
    return Report(
        f"{palette.n_colors} colours, {psnr:.1f} dB PSNR: {args.out}",
        {"out": str(args.out), "colors": palette.n_colors, "psnr": psnr if psnr < 1e9 else None},
    )
