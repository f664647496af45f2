"""Figures of `igpt score`: where pictures surprise, a set's extremes, two sets told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from igpt.plots.curves import BLUE, ORANGE, as_plain
from igpt.plots.sheets import GUTTER, INK, MARGIN, PAPER, TITLE, grid
from igpt.types import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from igpt.score import Signal

PAIRS = 2  # pictures, each with its map, in a row
TITLES = {2 * i + j: title for i in range(PAIRS) for j, title in enumerate(("picture", "surprise"))}
# The scale ends at this percentile of the shown pixels: else a few pixels leave all others dark.
TOP_PERCENTILE = 99
LEAST_TOP = 1.0  # nats that the scale reaches at least: a sure model's noise is not surprise
BACKING = 0.4  # brightness of the picture below its map
BAR, LABELS = 14, 62  # width of the colour bar, and of it with its labels
CAPTION = 24  # height of the line below a picture
BINS = 40


def surprise_sheet(pictures: Pixels, nats: npt.NDArray[np.float32]) -> Image.Image:
    """Pictures [N, H, W, 3], each beside its map: each pixel's `nats` [N, H, W] over it in grey.

    All maps share one colour scale, from black through red to pale yellow, drawn at the right.
    """
    top = max(LEAST_TOP, float(np.percentile(nats, TOP_PERCENTILE)))
    maps = _glow(pictures, np.clip(nats / top, 0, 1))
    pairs = np.stack((pictures, maps), axis=1)  # [N, 2, H, W, 3]
    rows = [np.concatenate(pairs[i : i + PAIRS]) for i in range(0, len(pairs), PAIRS)]
    columns = len(rows[0])
    sheet = grid(rows, {column: TITLES[column] for column in range(columns)})
    return _with_scale(sheet, top)


def _glow(pictures: Pixels, level: npt.NDArray[np.float32]) -> Pixels:
    """Grey pictures under the colours of `level` [N, H, W], 0 to 1: the higher, the more opaque."""
    grey = BACKING * pictures @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, [N, H, W]
    # The square root lets small levels show: with the level itself as opacity, only peaks would.
    opacity = np.sqrt(level)[..., None]
    colors = (1 - opacity) * grey[..., None] + opacity * _heat(level)
    return np.asarray(np.rint(colors), dtype=np.uint8)


def _heat(level: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Colours [..., 3], 0 to 255, of levels [...] from 0 to 1."""
    from matplotlib import colormaps

    return 255 * colormaps["inferno"](level)[..., :3]


def _with_scale(sheet: Image.Image, top: float) -> Image.Image:
    """The sheet with a colour bar of 0 to `top` nats at its right."""
    wide = Image.new("RGB", (sheet.width + LABELS, sheet.height), PAPER)
    wide.paste(sheet, (0, 0))
    high, low = MARGIN + TITLE, sheet.height - MARGIN  # below the titles of the columns
    levels = np.linspace(1, 0, low - high)[:, None].repeat(BAR, axis=1)
    wide.paste(Image.fromarray(_heat(levels).astype(np.uint8)), (sheet.width, high))
    pen, font = ImageDraw.Draw(wide), ImageFont.load_default(size=12)
    x = sheet.width + BAR + 5
    for label, y in (
        (f"{top:.1f}+", high + 6),
        (f"{top / 2:.1f}", (high + low) / 2),
        ("0", low - 6),
    ):
        pen.text((x, y), label, fill=INK, font=font, anchor="lm")
    title = ImageFont.load_default(size=14)
    pen.text((sheet.width, MARGIN - 2), "nats", fill=INK, font=title)
    return wide


def extremes_sheet(
    likely: Pixels,
    likely_bits: npt.NDArray[np.float64],
    unlikely: Pixels,
    unlikely_bits: npt.NDArray[np.float64],
) -> Image.Image:
    """Two rows of pictures [n, H, W, 3], with their bits/pixel [n] below."""
    top = _captioned(likely, "most likely", likely_bits)
    bottom = _captioned(unlikely, "least likely", unlikely_bits)
    sheet = Image.new("RGB", (top.width, top.height + bottom.height), PAPER)
    sheet.paste(top, (0, 0))
    sheet.paste(bottom, (0, top.height))
    return sheet


def _captioned(pictures: Pixels, title: str, numbers: npt.NDArray[np.float64]) -> Image.Image:
    """A row of pictures with a title above and a number below each."""
    row = grid([pictures], {0: title})
    sheet = Image.new("RGB", (row.width, row.height + CAPTION - MARGIN), PAPER)
    sheet.paste(row, (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    step = (row.width - 2 * MARGIN + GUTTER) / len(pictures)
    for i, number in enumerate(numbers):
        center = (MARGIN + i * step + (step - GUTTER) / 2, row.height - MARGIN + 2)
        pen.text(center, f"{number:.2f} bits/pixel", fill=INK, font=font, anchor="ma")
    return sheet


def ood_figure(raw: Signal, corrected: Signal, inside: str, outside: str) -> Figure:
    """Histograms of two sets, named `inside` and `outside`, by both signals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _histograms(left, raw, f"raw likelihood: AUROC {raw.auroc:.3f}", (inside, outside))
    left.set_xlabel("bits/pixel of the model")
    left.set_ylabel("% of the set")
    title = f"corrected for complexity: AUROC {corrected.auroc:.3f}"
    _histograms(right, corrected, title, (inside, outside))
    right.set_xlabel("bits/pixel of the model − of the compressor")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)  # fmt: skip
    return figure


def _histograms(axes: Axes, signal: Signal, title: str, labels: tuple[str, str]) -> None:
    both = np.concatenate((signal.inside, signal.outside))
    edges = np.histogram_bin_edges(both, min(BINS, max(5, len(both) // 10))).tolist()
    sets = (signal.inside, signal.outside)
    for values, label, color in zip(sets, labels, (BLUE, ORANGE), strict=True):
        share = np.full(len(values), 100 / len(values))
        axes.hist(values, edges, weights=share, label=as_plain(label), color=color, alpha=0.65)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
