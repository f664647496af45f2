"""A probe on the disk, and the fingerprint of the model that it was made for.

One file holds it, so that it is whole or not there: probe.safetensors, with weight [C, F] and bias
[C], or an attentive probe's tensors, and in its header layers, pooling, names of the classes and
the model's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from igpt.config import UserError, first_line
from igpt.data.sources import source_name
from igpt.disk import write_atomically
from igpt.interop.files import read_metadata, read_tensors
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.parallel.processes import from_first
from igpt.parallel.sharding import whole
from igpt.probe.attention import AttentionHead
from igpt.probe.linear import LinearProbe, Probe

PROBE, HEADER = "probe.safetensors", "probe"  # the file, and the key of its header
RESULTS = "results.json"  # beside it: what it reached


@dataclass(frozen=True)
class Fingerprint:
    """What a probe's features depend on."""

    weights: str  # hash of the model's, heads left out
    palette: str  # hash of the clusters
    image_size: int
    order: str


@dataclass(frozen=True)
class LearnedFrom:
    """Which pictures a probe learned from and was chosen by, without their name."""

    source: str  # `source_fingerprint`
    pictures: int  # of its training and validation splits


@dataclass(frozen=True)
class SavedProbe:
    """A probe with all that predicting with it needs."""

    probe: Probe
    layers: tuple[int, ...]  # side by side, where there are several
    pool: str
    class_names: tuple[str, ...]
    made_for: Fingerprint
    learned_from: LearnedFrom | None = None  # None: not known


def source_fingerprint(source: str) -> str:
    """What tells a source of pictures from another, and does not tell its name."""
    return hashlib.sha256(os.fsencode(source_name(source))).hexdigest()[:16]


def fingerprint(model: ImageGPT, codec: Codec) -> Fingerprint:
    """The fingerprint of a model with its codec; of several processes all call it."""
    trunk = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(("head.", "clf.")):
            for held in whole({name: tensor}).values():
                trunk.update(name.encode() + held.cpu().numpy().tobytes())
    clusters = hashlib.sha256(codec.palette.clusters.tobytes()).hexdigest()
    weights = from_first(trunk.hexdigest)  # who alone has the whole of a model that is split
    return Fingerprint(weights[:16], clusters[:16], codec.image_size, codec.order)


def save_probe(folder: Path, saved: SavedProbe) -> None:
    """Write the probe, whole or not at all."""
    probe, learned = saved.probe, saved.learned_from
    header = {
        "head": "linear" if isinstance(probe, LinearProbe) else "attention",
        "layers": list(saved.layers),
        "pool": saved.pool,
        "class_names": list(saved.class_names),
        "made_for": asdict(saved.made_for),
        "learned_from": learned and learned.source,
        "learned_pictures": learned and learned.pictures,
    }
    if isinstance(probe, LinearProbe):
        arrays = {"weight": probe.weight, "bias": probe.bias}
        tensors = {name: torch.from_numpy(a).contiguous() for name, a in arrays.items()}
    else:
        assert isinstance(probe, AttentionHead)
        tensors = probe.state_dict()
    metadata = {HEADER: json.dumps(header)}
    write_atomically(folder / PROBE, lambda temporary: save_file(tensors, temporary, metadata))


def load_probe(folder: Path, expected: Fingerprint) -> SavedProbe:
    """Read a probe; UserError when there is none, it is broken, or made for something else."""
    path = folder / PROBE
    if not path.is_file():
        raise UserError(f"no probe in {folder}: `igpt probe` makes one")
    tensors, metadata = read_tensors(path), read_metadata(path)
    if HEADER not in metadata:
        raise UserError(f"{path} is not a probe: `igpt probe` makes one")
    try:
        header = json.loads(metadata[HEADER])
        made_for = Fingerprint(**header["made_for"])
        probe = _build(header["head"], tensors)
        layers, names = tuple(header["layers"]), tuple(header["class_names"])
        source = header["learned_from"]
        learned_from = LearnedFrom(source, header["learned_pictures"]) if source else None
        saved = SavedProbe(probe, layers, header["pool"], names, made_for, learned_from)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a probe: {first_line(error)}") from error
    for part, what in (
        ("image_size", "pictures of another size"),
        ("palette", "another palette"),
        ("order", "another order"),
        ("weights", "another model"),
    ):
        theirs, ours = getattr(made_for, part), getattr(expected, part)
        if theirs != ours:
            raise UserError(f"the probe in {folder} was made for {what} ({theirs}, not {ours})")
    return saved


def _build(head: str, tensors: dict[str, torch.Tensor]) -> Probe:
    if head == "linear":
        return LinearProbe(tensors["weight"].numpy(), tensors["bias"].numpy())
    attention = AttentionHead(len(tensors["mean"]), len(tensors["out.bias"]))
    attention.load_state_dict(tensors)
    return attention
