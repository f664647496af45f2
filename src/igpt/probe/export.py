"""Features of a set that need not fit in memory, streamed to a `.npz` or `.parquet`.

Pictures are decoded a part at a time and pass the model in batches; rows go to the disk as they
come. How many there are is known at the end, as unreadable pictures are left out.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy

from igpt.config import Say, UserError
from igpt.data.decode import Transform, decode_parts, fit_square
from igpt.data.pictures import Pictures
from igpt.device import require_memory
from igpt.disk import write_atomically
from igpt.evaluate import BATCH, in_batches
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.parallel.processes import dp_size, on_first, rank
from igpt.probe.features import Features, Pool, batch_features, make_pool, parse_layers, pool_width
from igpt.probe.linear import FeatureTransform

PIECE = 2**24  # bytes copied at a time
ROW_GROUP = 2**26  # bytes of a .parquet's row group, or one batch of each process

Picture = tuple[torch.Tensor, int, str]  # tokens [T] in the model's order, label, name


@dataclass(frozen=True)
class Rows:
    """Some pictures' part of the table."""

    features: Features  # [B, columns, width]
    labels: tuple[int, ...]  # -1: missing
    names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What the table has beside its rows."""

    layers: tuple[int, ...]
    columns: int  # of features: one for each layer, or one for all side by side
    width: int  # of a column
    labelled: bool
    class_names: tuple[str, ...] | None  # of the labels, where the source has names

    @property
    def stacked(self) -> bool:
        """Whether layers are apart: `all` of them are two or more."""
        return self.columns > 1

    @property
    def row_bytes(self) -> int:
        return self.columns * self.width * np.dtype(np.float32).itemsize

    def shape(self, count: int) -> tuple[int, ...]:
        """[N, layers, width] or [N, width]"""
        return (count, self.columns, self.width) if self.stacked else (count, self.width)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    shape: tuple[int, ...]  # of the features
    skipped: int  # unreadable pictures


def export_features(
    model: ImageGPT,
    codec: Codec,
    pictures: Pictures,
    out: Path,
    *,
    layer: str = "all",
    pool: str = "mean",
    components: int = 0,
    known: Pictures | None = None,
    transform: Transform = fit_square,
    dtype: torch.dtype = torch.float32,
    say: Say,
) -> Exported:
    """Write what the layers know of every readable picture; what `Pipeline.features` gives at once.

    `out` ends in .npz: `features` float32 [N, F], or [N, layers, F] for layer "all", `labels`
    int64 [N] where the set has any (-1 is a missing one), `names` [N] and `layers`. Or in .parquet:
    columns `features` (for "all", `layer_0` and on), `label` and `name`.

    With `components`, each layer's features, or those side by side, are standardised and projected
    on as many principal components of those of the pictures `known`.

    Unreadable pictures are left out and named in a warning. Raises UserError for layers, pools and
    suffixes that there are not, a set without a readable picture, and a disk that is too small.
    Of several processes, all call it and the first writes.
    """
    write = {".npz": _write_npz, ".parquet": _write_parquet}.get(out.suffix.lower())
    if write is None:
        raise UserError(f"cannot write features as '{out.name}': expected .npz or .parquet")
    layers, reduce = parse_layers(layer, model.config.n_layer), make_pool(pool, codec)
    columns = len(layers) if layer == "all" else 1
    make = partial(_extract_rows, model, layers=layers, columns=columns, pool=reduce, dtype=dtype)
    feature_transforms = None
    if components:
        assert known is not None, "components are those of known pictures"
        numbers = len(known) * len(layers) * pool_width(reduce, model.config)
        held = numbers * np.dtype(np.float32).itemsize
        require_memory(held, "fewer layers, or a coarser pool")
        feature_transforms = _fit_transforms(make(_read(known, codec, transform, say)), components)
        width = feature_transforms[0].width
    else:
        width = pool_width(reduce, model.config) * len(layers) // columns
    layout = Layout(layers, columns, width, pictures.labels is not None, pictures.class_names)
    # A .npz is put together from a file of its rows.
    copies = 2 if write is _write_npz else 1
    on_first(lambda: _require_space(out, copies * len(pictures) * layout.row_bytes))
    rows = make(_read(pictures, codec, transform, say), feature_transforms=feature_transforms)
    count = 0

    def write_rows(temporary: Path) -> None:
        nonlocal count
        count = write(temporary, rows, layout)

    if rank() == 0:
        write_atomically(out, write_rows)
    else:
        count = sum(len(part.names) for part in rows)  # computes its share of them
    return Exported(layout.shape(count), len(pictures) - count)


def _require_space(out: Path, needed: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{out}: the features take {needed / 1e6:,.1f} MB while they are written, and "
            f"{free / 1e6:,.1f} MB are free there"
        )


def _fit_transforms(rows: Iterator[Rows], components: int) -> list[FeatureTransform]:
    """What standardises and projects each column."""
    parts = [part.features for part in rows]  # [n, columns, width] each
    columns = range(parts[0].shape[1])
    return [
        FeatureTransform.fit(np.concatenate([p[:, i] for p in parts]), components) for i in columns
    ]


def _extract_rows(
    model: ImageGPT,
    readable: Iterator[Picture],
    *,
    layers: tuple[int, ...],
    columns: int,
    pool: Pool,
    dtype: torch.dtype,
    feature_transforms: Sequence[FeatureTransform] | None = None,
) -> Iterator[Rows]:
    """The table, a batch of every process at a time."""
    first, of_batch = 0, batch_features(model, layers, pool, dtype)

    def of_part(tokens: torch.Tensor, start: int) -> torch.Tensor:
        return of_batch(tokens, first + start, 0)

    # Full batches whatever was left out: a BERT model's mask depends on a picture's place in them.
    while batch := list(islice(readable, BATCH * dp_size())):
        tokens, labels, names = zip(*batch, strict=True)
        parts = [part.cpu().numpy() for part in in_batches(torch.stack(tokens), of_part)]
        features = np.concatenate(parts).reshape(len(batch), columns, -1)
        if feature_transforms:
            features = np.stack(
                [f(features[:, i]) for i, f in enumerate(feature_transforms)], axis=1
            )
        yield Rows(features, labels, names)
        first += len(batch)


def _read(pictures: Pictures, codec: Codec, transform: Transform, say: Say) -> Iterator[Picture]:
    """The readable pictures in turn."""
    done = 0
    for part in decode_parts(pictures, codec.image_size, transform):
        tokens = torch.from_numpy(codec.encode(part.images))
        for row, i in zip(tokens, part.kept.tolist(), strict=True):
            label = -1 if pictures.labels is None else int(pictures.labels[i])
            yield row, label, pictures.name(i)
        done += len(part.kept) + len(part.skipped)
        say(f"{done:,} of {len(pictures):,} pictures")


def _write_npz(path: Path, rows: Iterable[Rows], layout: Layout) -> int:
    """Write the members and return how many rows there were.

    An array's header tells its length and a zip file's its sum, so rows wait in a file without a
    name, which no kill can leave behind.
    """
    labels: list[int] = []
    names: list[str] = []
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        for part in rows:
            spool.write(np.ascontiguousarray(part.features).data)
            labels.extend(part.labels)
            names.extend(part.names)
        spool.seek(0)
        header = {
            "descr": npy.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": layout.shape(len(names)),
        }
        members: dict[str, npt.NDArray[Any]] = {"names": np.array(names)}
        members["layers"] = np.array(layout.layers, dtype=np.int64)
        if layout.labelled:
            members["labels"] = np.array(labels, dtype=np.int64)
            if layout.class_names is not None:
                members["class_names"] = np.array(layout.class_names)
        with ZipFile(path, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, header)
                shutil.copyfileobj(spool, member, PIECE)
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, array)
    return len(names)


def _write_parquet(path: Path, rows: Iterable[Rows], layout: Layout) -> int:
    """Write the columns, in row groups of about `ROW_GROUP` bytes, and return the rows' number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [f"layer_{i}" for i in layout.layers] if layout.stacked else ["features"]
    fields = [(column, pa.list_(pa.float32(), layout.width)) for column in columns]
    if layout.labelled:
        fields.append(("label", pa.int64()))
    about = {"class_names": json.dumps(layout.class_names)} if layout.class_names else None
    schema = pa.schema([*fields, ("name", pa.string())], about)

    def table(parts: list[Rows]) -> Any:
        features = np.concatenate([part.features for part in parts])
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(features[:, i].ravel()), layout.width)
            for i in range(len(columns))
        ]
        if layout.labelled:
            arrays.append(pa.array([label for part in parts for label in part.labels], pa.int64()))
        arrays.append(pa.array([name for part in parts for name in part.names]))
        return pa.table(arrays, schema)

    per_group = max(1, ROW_GROUP // (BATCH * dp_size() * layout.row_bytes))  # of `rows`
    count, stream = 0, iter(rows)
    with path.open("wb") as sink, pq.ParquetWriter(sink, schema, use_dictionary=False) as writer:
        while parts := list(islice(stream, per_group)):
            writer.write_table(table(parts))
            count += sum(len(part.names) for part in parts)
    return count
