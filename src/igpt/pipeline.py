"""`igpt.load`: a model with its palette and order; pictures in, pictures and numbers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from igpt.checkpoint import recipe_of
from igpt.classify import MASKS, Classifier, HeadClassifier, Prediction, ProbeClassifier
from igpt.config import Ensemble, ParallelConfig, Recipe, UserError
from igpt.data.decode import Transform, evaluation_transform, fit_square
from igpt.data.shown import Shown, as_pixels
from igpt.device import compute_dtype, find_device, reuse_memory
from igpt.evaluate import BATCH, Likelihood, picture_nats, pixel_nats
from igpt.folder import fill_model, load_class_names, open_model
from igpt.interop.files import local_folder
from igpt.model import ImageGPT
from igpt.objectives import generative_objective
from igpt.order import Codec, Encoded
from igpt.palette import Palette
from igpt.parallel.processes import together
from igpt.probe.features import Extractor, make_pool, parse_layers
from igpt.probe.store import Fingerprint, fingerprint, load_probe
from igpt.sample import Sampling, generate
from igpt.share import push, save
from igpt.types import Pixels

# What people hold, or tokens of the model's palette already, as are the pictures that a command has
# decoded: they are taken as they are. All others are brought to the model's size as the run's own.
Images = Shown | Encoded


class Pipeline:
    """A model and all that stands between it and pictures.

    `images` are, everywhere, one or several PIL images, paths, or uint8 arrays or tensors: [H, W],
    [H, W, 3], [B, H, W] or [B, H, W, 3]; they may be of any size, and are brought to the model's.
    Where pictures become numbers, `precision` is that of the model's products: float32; bfloat16,
    which is faster where the device has it in hardware; or "auto", bfloat16 on such a device.
    """

    def __init__(
        self,
        model: ImageGPT,
        codec: Codec,
        class_names: tuple[str, ...] = (),
        folder: Path | None = None,
        parallel: ParallelConfig | None = None,
        transform: Transform = fit_square,
        device: str | torch.device | None = None,
    ) -> None:
        reuse_memory()
        self.model = model.to(find_device(device)).eval()
        self.codec = codec
        self.class_names = class_names  # of the model's own head, if it has one
        self.folder = folder  # where it was loaded from, and where its probe is
        self.parallel = parallel or ParallelConfig()  # how processes hold it between them
        # What brings a picture to the model's size, as when it was trained.
        self.transform = transform

    def __repr__(self) -> str:
        config, size = self.model.config, self.image_size
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return (
            f"Pipeline({config.kind}, L={config.n_layer}, d={config.n_embd}, "
            f"{size}x{size} pixels of {self.palette.n_colors} colours{classes}, {self.folder})"
        )

    def __sklearn_clone__(self) -> Self:
        """Itself: scikit-learn copies estimators for every fold, and none changes its pipeline."""
        return self

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Pipeline:
        """`igpt.load`, by the name that it has elsewhere."""
        return load(path, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that `igpt.load` and `transformers` read; recipe and probe too."""
        save(self, Path(folder))

    def push_to_hub(
        self,
        model_id: str,
        *,
        license: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the model folder, with a card and samples, as the Hub model `model_id`.

        `license` is an identifier of the Hub, like mit; `revision` a branch. Returns the address.
        Raises UserError, one line, when the Hub is out of reach or refuses.
        """
        return push(
            self,
            model_id,
            license=license,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    @property
    def palette(self) -> Palette:
        return self.codec.palette

    @property
    def order(self) -> str:
        return self.codec.order

    @property
    def image_size(self) -> int:
        return self.codec.image_size

    def sample(
        self,
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        precision: str = "auto",
    ) -> list[Image.Image]:
        """Paint `n` new pictures.

        `precision` of what a step reads is float32, bfloat16, int8, or "auto": bfloat16 where it is
        fast. In float32 the model is as it was trained, whatever the machine.
        """
        sampling = Sampling(temperature, top_k, top_p, seed, precision)
        return _as_list(self.sample_batches(n, sampling))

    def sample_batches(self, n: int, sampling: Sampling) -> Iterator[Pixels]:
        """`sample` as arrays [b, H, W, 3], each as soon as it is painted."""
        return self._continue(torch.empty(1, 0, dtype=torch.long), n, sampling)

    def complete(
        self,
        images: Images,
        keep: float = 0.5,
        n: int = 4,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        precision: str = "auto",
    ) -> list[list[Image.Image]]:
        """Complete each picture in `n` ways from its first part: a list of n for each.

        `keep` is the part that is given, in the model's order; 0.5 of a raster is the upper half.
        """
        sampling = Sampling(temperature, top_k, top_p, seed, precision)
        completed = _as_list(self.complete_batches(images, keep, n, sampling))
        return [completed[i : i + n] for i in range(0, len(completed), n)]

    def complete_batches(
        self, images: Images, keep: float, n: int, sampling: Sampling
    ) -> Iterator[Pixels]:
        """`complete` as arrays [b, H, W, 3], as `sample_batches`: picture after picture."""
        return self._continue(self.tokens(images)[:, : self._n_given(keep)], n, sampling)

    def _continue(self, prefix: torch.Tensor, n: int, sampling: Sampling) -> Iterator[Pixels]:
        """Each of the pictures that begin with the tokens `prefix` [B, t], in n ways."""
        if n < 1:
            raise UserError(f"n must be at least 1, got {n}")
        for tokens in generate(self.model, prefix, n, sampling):
            yield self.codec.decode(tokens.numpy())

    def nll(
        self,
        images: Images,
        *,
        precision: str = "float32",
        check: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Negative log-likelihood of each picture, in nats per pixel, [B].

        For a BERT model: of the pixels hidden by a fixed random mask, given the others. `check` is
        called before every batch.
        """
        dtype, tokens = self.dtype(precision), self.tokens(images)
        objective = generative_objective(self.model.config, seed=0, stream="evaluate")
        nats = picture_nats(self.model, objective, tokens, BATCH, dtype, check=check)
        return nats.double().numpy()

    def likelihood(
        self,
        images: Images,
        *,
        precision: str = "float32",
        check: Callable[[], None] | None = None,
    ) -> Likelihood:
        """Totals of `nll` over a set."""
        nats = self.nll(images, precision=precision, check=check)
        return Likelihood(float(nats.mean()), n_pixels=self.codec.n_tokens, count=len(nats))

    def features(
        self,
        images: Images,
        layer: int | str = "all",
        pool: str = "mean",
        *,
        precision: str = "float32",
    ) -> npt.NDArray[np.float32]:
        """What the layers know of the pictures: the paper's n^l, pooled over positions.

        Layer l is what enters block l, normalised; n_layer is the output after the final norm.
        `layer` is one of 0 to n_layer, giving [B, F]; "a:b", those side by side, [B, (b-a+1) F]; or
        "all", [B, n_layer + 1, F]. `pool` is mean, grid:G, last or flatten. A BERT model is shown
        its pictures masked, and which pixels are hidden depends on a picture's place among them.
        """
        layers = parse_layers(str(layer), self.model.config.n_layer)
        reduce, dtype = make_pool(pool, self.codec), self.dtype(precision)
        extractor = Extractor(self.model, self.codec, reduce, {"asked": layers}, dtype)
        features = extractor.whole(self._shown(images))["asked"]  # [B, layers * F]
        return features.reshape(len(features), len(layers), -1) if layer == "all" else features

    def predict(self, images: Images, *, precision: str = "float32") -> Prediction:
        """Class `labels` [B], their `names`, and `probabilities` [B, C], of all `class_names` [C].

        By the model's own head or, if it has none, by its run's probe.
        """
        dtype = self.dtype(precision)
        return self.classifier().predict(self.tokens(images), dtype)

    def classifier(
        self, probe: Path | None = None, ensemble: Ensemble = "modal", masks: int = MASKS
    ) -> Classifier:
        """The model's own head, else the probe in the folder `probe`, by default the run's.

        `ensemble` and `masks` say how the masks of a BERT model vote. Raises UserError when there
        is neither, and for a probe of another model.
        """
        if probe is None:
            if self.model.config.n_classes:
                return HeadClassifier(self.model, self.class_names, ensemble, masks)
            if self.folder is None:
                raise UserError("this model has no classification head and no folder with a probe")
            probe = self.folder / "probe"
        saved = load_probe(probe, self._fingerprint)
        return ProbeClassifier(self.model, self.codec, saved, ensemble, masks)

    def surprise(
        self,
        images: Images,
        *,
        precision: str = "float32",
        check: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """-ln p of each pixel at its place in the picture, nats, [B, H, W].

        Given the pixels that the model reads before it; for a BERT model, given all but a random
        part of the pixels, of which it is one: a seventh for the paper's 15 %. `check` is called
        before every batch.
        """
        dtype, tokens = self.dtype(precision), self.tokens(images)
        nats = pixel_nats(self.model, tokens, BATCH, dtype, check).numpy()  # [B, T]
        raster = np.empty_like(nats)
        raster[:, self.codec.pi] = nats
        return raster.reshape(-1, self.image_size, self.image_size)

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        """Which model this is, for its probes: once, as all weights are read for it."""
        return fingerprint(self.model, self.codec)

    def dtype(self, precision: str) -> torch.dtype:
        """The type of the model's products that `precision` stands for, where the model is.

        Raises UserError for a precision of another name.
        """
        return compute_dtype(precision, self.model.wte.device)

    def tokens(self, images: Images) -> torch.Tensor:
        """Tokens uint16 [B, T] in the model's order, of pictures brought to the model's size."""
        return torch.from_numpy(self.codec.encode(self._shown(images)))

    def _shown(self, images: Images) -> Pixels | Encoded:
        """Pictures brought to the model's size, or such as are encoded already."""
        if isinstance(images, Encoded):
            return images
        return as_pixels(images, self.image_size, self.transform)

    def quantize(self, images: Images) -> Pixels:
        """The pictures as the model sees them, [B, H, W, 3]: resized, in the palette's colours."""
        return self.codec.decode(self.tokens(images).numpy())

    def _n_given(self, keep: float) -> int:
        """How many tokens the part `keep` of a picture is; UserError unless it is in [0, 1)."""
        if not 0 <= keep < 1:
            raise UserError(f"keep must be at least 0 and below 1, got {keep}")
        return round(keep * self.codec.n_tokens)

    def given_mask(self, keep: float) -> npt.NDArray[np.bool_]:
        """[H, W], True at the pixels that `complete` takes as given."""
        mask = np.zeros(self.codec.n_tokens, dtype=bool)
        mask[self.codec.pi[: self._n_given(keep)]] = True
        return mask.reshape(self.image_size, self.image_size)


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    parallel: ParallelConfig | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """The pipeline of a run, an ImageGPT model folder, or a Hub model like `openai/imagegpt-small`.

    It computes on `device`, by default on the GPU if PyTorch sees one, else on the processor.
    Of several processes all call it, and hold the model between them as `parallel` says; by default
    each holds the whole. One that is split computes likelihoods, features and classes, and all call
    what it is asked for; it does not sample. `revision` and what follows it are for the Hub. Raises
    UserError, one line, when there is no model or it is broken, and for a device that is not here.
    """
    place = find_device(device)
    parallel = parallel or ParallelConfig()
    with together():
        folder = local_folder(
            path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        stored = open_model(folder)
        class_names = load_class_names(folder, stored.config.n_classes)
        recipe = recipe_of(folder) or Recipe()
    model = fill_model(stored, parallel, place)
    transform = evaluation_transform(recipe.data.augmentation)
    return Pipeline(model, stored.codec, class_names, folder, parallel, transform, place)


def _as_list(batches: Iterator[Pixels]) -> list[Image.Image]:
    return [Image.fromarray(pixels) for batch in batches for pixels in batch]
