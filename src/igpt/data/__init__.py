"""Pictures in: sources, decoding, augmentation, and a loader addressed by step."""

from igpt.data.augment import imagenet_crop, move_pixels, move_tokens
from igpt.data.decode import Decoded, decode_all, fit_square, imagenet_centre, to_rgb, warn_skipped
from igpt.data.labels import Labelled, Task, few_labels, labelled, open_task
from igpt.data.loader import (
    Batch,
    CropLoader,
    Loader,
    State,
    TokenLoader,
    epoch_order,
    prefetch,
)
from igpt.data.pictures import Pictures, Source, UnreadablePicture, open_files
from igpt.data.shards import Stream, next_pictures, open_streams
from igpt.data.sources import evaluation_split, open_data, open_source, training_splits
from igpt.data.stream import StreamLoader

__all__ = [
    "Batch",
    "CropLoader",
    "Decoded",
    "Labelled",
    "Loader",
    "Pictures",
    "Source",
    "State",
    "Stream",
    "StreamLoader",
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
    "next_pictures",
    "open_data",
    "open_files",
    "open_source",
    "open_streams",
    "open_task",
    "prefetch",
    "to_rgb",
    "training_splits",
    "warn_skipped",
]
