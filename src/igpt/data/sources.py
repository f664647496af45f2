"""Where pictures come from: every kind of `--data`."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from igpt.config import DataConfig, UserError
from igpt.data.arrays import open_arrays, open_openai, openai_arrays
from igpt.data.hub import open_dataset
from igpt.data.pictures import Pictures, Source, array_pictures, as_text
from igpt.rng import numpy_rng

# The `datasets` library's builder of each kind of shard.
BUILDERS = {
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
}
DIGITS_TEST = 297  # test pictures of scikit-learn's 1,797 digits, chosen by a fixed shuffle


def open_source(
    spec: str, *, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Open `digits`, a `.npy`/`.npz`, a local folder or a Hugging Face data set id.

    Encoded pictures may be in a `.npy`/`.npz`, or in files named like OpenAI's, `imagenet_teX.npy`
    and so on: `spec` is then one of these files, their folder, or their path up to the `_`.

    Raises UserError when there is no such thing or it has no pictures.
    """
    path = Path(spec)
    if spec == "digits":
        if image_column or label_column:
            raise UserError("the digits have no columns to choose from")
        if path.is_dir():
            warnings.warn("these are scikit-learn's digits: the folder is ./digits", stacklevel=2)
        return _digits()
    if spec and (files := openai_arrays(path)):
        return open_openai(spec, files)
    if path.suffix in (".npy", ".npz"):
        if image_column or label_column:
            raise UserError(f"{spec} has no columns to choose from")
        return open_arrays(path)
    if is_shards(spec):
        raise UserError(
            f"{spec} is a stream of shards, for `igpt pretrain --streaming` and `igpt prepare`: "
            "give the folder that they lie in, or what `igpt prepare` makes of them"
        )
    if path.is_file():
        raise UserError(f"{spec} is a file: expected a folder, .npy, .npz or a data set id")
    if not spec or not (path.exists() or is_hub_id(spec)):
        raise UserError(
            f"no data at '{spec}': --data takes a folder, .npy, .npz, `digits` or a Hub id"
        )
    return open_dataset(spec, image_column, label_column)


def shard_builder(spec: str) -> str | None:
    """The builder of shards by their path or URL; None for anything else, like a folder."""
    if Path(spec).is_dir():
        return None
    return next((kind for suffix, kind in BUILDERS.items() if spec.endswith(suffix)), None)


def is_shards(spec: str) -> bool:
    """Whether a source is shards by their path or URL, and so can only be read as a stream."""
    return "://" in spec or shard_builder(spec) is not None


def is_hub_id(spec: str) -> bool:
    """Whether a source may be a data set of the Hugging Face Hub."""
    return spec.count("/") == 1 and not spec.startswith((".", "/"))


def data_of(config: DataConfig, source: str | None) -> DataConfig:
    """The data section for `source`; `config` itself for None, or its own source however spelled.

    For another source the names of columns and splits mean nothing. Which part is held out is drawn
    in the same way: it may be the same pictures elsewhere.
    """
    if source is None or source_name(source) == source_name(config.source):
        return config
    return DataConfig(
        source=source,
        image_size=config.image_size,
        augmentation=config.augmentation,
        validation_fraction=config.validation_fraction,
        split_seed=config.split_seed,
    )


def is_gone(spec: str) -> bool:
    """Whether a source is the path of one file or folder, and that is there no more.

    A recipe has whole paths, or `./name` where it was shared.
    """
    path = Path(spec)
    several = re.search(r"[*?{\[]", spec) or openai_arrays(path)
    local = path.is_absolute() or spec.startswith("./")
    return local and not several and not path.exists()


def source_name(spec: str) -> str:
    """The one name of a source, however its path is spelled, from any working directory.

    A path is also a pattern of shards, or the beginning of the names of OpenAI's files.
    """
    if spec in ("", "digits") or "://" in spec:
        return spec
    path = Path(spec)
    here = path.exists() or shard_builder(spec) or openai_arrays(path)
    return str(path.resolve()) if here else spec


def short_name(spec: str) -> str:
    """The last part of a source that is a local path; a Hub id stays as it is."""
    path = Path(spec.removeprefix("file://"))
    local = path.exists() or path.is_absolute() or spec.startswith(".")
    return as_text(path.name if local else spec)


def open_data(config: DataConfig) -> Source:
    """The source that a recipe's data section names; UserError as `open_source`."""
    return open_source(
        config.source, image_column=config.image_column, label_column=config.label_column
    )


def _digits() -> Source:
    # The file that `sklearn.datasets.load_digits` reads, without that module's second of imports.
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(file, dtype=np.int64, delimiter=",")  # [1797, 64 + 1], pixels 0 to 16
    images = np.rint(table[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    labels, names = table[:, -1], tuple(map(str, range(10)))
    shuffled = numpy_rng(0, "digits").permutation(len(images))
    parts = {"train": np.sort(shuffled[DIGITS_TEST:]), "test": np.sort(shuffled[:DIGITS_TEST])}

    def open_split(split: str) -> Pictures:
        index = parts[split]
        pictures = array_pictures(images[index], labels[index], f"digits/{split}")
        return replace(pictures, class_names=names)

    return Source("digits", {split: partial(open_split, split) for split in parts})
