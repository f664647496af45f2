"""Pictures in: sources, decoding, augmentation, and a loader addressed by step."""

from igpt.data.augment import imagenet_crop, move_pixels, move_tokens
from igpt.data.decode import Decoded, decode_all, fit_square, imagenet_centre, to_rgb
from igpt.data.labels import Labelled, Task, few_labels, labelled, open_task
from igpt.data.loader import Batch, CropLoader, Loader, TokenLoader, epoch_order, prefetch
from igpt.data.pictures import Pictures, Source, UnreadablePicture, open_files
from igpt.data.sources import evaluation_split, open_data, open_source, training_splits

__all__ = [
    "Batch",
    "CropLoader",
    "Decoded",
    "Labelled",
    "Loader",
    "Pictures",
    "Source",
    "Task",
    "TokenLoader",
    "UnreadablePicture",
    "decode_all",
    "epoch_order",
    "evaluation_split",
    "few_labels",
    "fit_square",
    "imagenet_centre",
    "imagenet_crop",
    "labelled",
    "move_pixels",
    "move_tokens",
    "open_data",
    "open_files",
    "open_source",
    "open_task",
    "prefetch",
    "to_rgb",
    "training_splits",
]
