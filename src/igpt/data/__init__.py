"""Pictures in: sources, decoding, augmentation, and a loader addressed by step."""

from igpt.data.augment import imagenet_crop, move_pixels
from igpt.data.decode import (
    Transform,
    decode_all,
    decode_parts,
    encode_all,
    evaluation_transform,
    fit_square,
    imagenet_centre,
    read_rgb,
    to_rgb,
    warn_skipped,
)
from igpt.data.labels import (
    Labelled,
    LargeTask,
    Task,
    Undecoded,
    few_labels,
    labelled,
    open_large_task,
    open_task,
    open_training,
    unlabelled,
)
from igpt.data.loader import (
    Batch,
    Loader,
    PictureLoader,
    State,
    TokenLoader,
    prefetch,
)
from igpt.data.pictures import BROKEN, Pictures, Source, UnreadablePicture, open_files
from igpt.data.pieces import Cut, Item, cut_source
from igpt.data.shards import Stream, next_pictures, open_streams
from igpt.data.shown import Shown, as_pixels
from igpt.data.sources import data_of, is_gone, is_shards, open_data, open_source, source_name
from igpt.data.splits import (
    count_split_pictures,
    evaluation_split,
    pictures_to_test,
    task_training_splits,
    training_splits,
)
from igpt.data.stream import StreamLoader

__all__ = [
    "BROKEN",
    "Batch",
    "Cut",
    "Item",
    "Labelled",
    "LargeTask",
    "Loader",
    "PictureLoader",
    "Pictures",
    "Shown",
    "Source",
    "State",
    "Stream",
    "StreamLoader",
    "Task",
    "TokenLoader",
    "Transform",
    "Undecoded",
    "UnreadablePicture",
    "as_pixels",
    "count_split_pictures",
    "cut_source",
    "data_of",
    "decode_all",
    "decode_parts",
    "encode_all",
    "evaluation_split",
    "evaluation_transform",
    "few_labels",
    "fit_square",
    "imagenet_centre",
    "imagenet_crop",
    "is_gone",
    "is_shards",
    "labelled",
    "move_pixels",
    "next_pictures",
    "open_data",
    "open_files",
    "open_large_task",
    "open_source",
    "open_streams",
    "open_task",
    "open_training",
    "pictures_to_test",
    "prefetch",
    "read_rgb",
    "source_name",
    "task_training_splits",
    "to_rgb",
    "training_splits",
    "unlabelled",
    "warn_skipped",
]
