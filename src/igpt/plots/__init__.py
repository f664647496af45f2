"""Figures from arrays: sheets of pictures, curves, and the figures of scores."""

from igpt.plots.curves import (
    confusion_figure,
    few_labels_figure,
    layers_figure,
    loss_figure,
    save_figure,
    sweep_figure,
)
from igpt.plots.scores import extremes_sheet, ood_figure, surprise_sheet
from igpt.plots.sheets import (
    completion_sheet,
    palette_sheet,
    picture_sheet,
    require_picture,
    require_pictures,
    save_image,
    save_pictures,
)

__all__ = [
    "completion_sheet",
    "confusion_figure",
    "extremes_sheet",
    "few_labels_figure",
    "layers_figure",
    "loss_figure",
    "ood_figure",
    "palette_sheet",
    "picture_sheet",
    "require_picture",
    "require_pictures",
    "save_figure",
    "save_image",
    "save_pictures",
    "surprise_sheet",
    "sweep_figure",
]
