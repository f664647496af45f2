"""scikit-learn estimators: features of a run as a transformer, and a probe on them as a classifier.

Both take the pictures `X` of N samples as

- numbers [N, H, W] or [N, H, W, 3]: integers 0 to 255 or floats 0 to 1, unless `white` says what
  full brightness is; lists of lists, data frames and tensors are such numbers too
- numbers [N, H*W] or [N, H*W*3], a row a square picture as its array flattens (not channel after
  channel, as CIFAR's files have it)
- a list of PIL images, paths of files, or arrays of several sizes [H, W] or [H, W, 3]

and resize them to the model's size. Every other X raises ValueError, a file that cannot be read
UserError.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import assert_all_finite
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    check_non_negative,
    column_or_1d,
    validate_data,
)

from igpt.config import UserError
from igpt.data.decode import DARK
from igpt.data.shown import as_pixels
from igpt.order import Encoded
from igpt.pipeline import Pipeline, load
from igpt.probe.features import Features, make_pool, parse_layers, pool_width
from igpt.probe.linear import (
    STRENGTHS,
    FeatureTransform,
    LinearProbe,
    log_loss,
    logistic_path,
    usual_components,
)
from igpt.types import Floats, Labels, Pixels

FOLDS = 5  # of the cross-validation that chooses C


class InvalidInput(UserError, ValueError):
    """A mistake in what an estimator was given: scikit-learn expects ValueError of it."""


class _PictureEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: a run, and how pictures become features."""

    def __init__(
        self, run: str | Path | Pipeline, layer: int | str, pool: str, white: float | None
    ) -> None:
        self.run, self.layer, self.pool, self.white = run, layer, pool, white

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True  # paths
        tags.input_tags.positive_only = True
        return tags

    def _load(self) -> None:
        """Load the run; UserError when it is broken or lacks the layer or pool."""
        for name in ("n_features_in_", "feature_names_in_"):  # of the table of an earlier fit
            if hasattr(self, name):
                delattr(self, name)
        if self.white is not None and not self.white > 0:
            raise InvalidInput(f"white must be above 0, got {self.white}")
        self.pipeline_ = self.run if isinstance(self.run, Pipeline) else load(self.run)
        parse_layers(str(self.layer), self.pipeline_.model.config.n_layer)
        make_pool(self.pool, self.pipeline_.codec)

    def _features(self, images: Pixels) -> Features:
        """[N, F] of pictures uint8 [N, S, S, 3]; several layers stand side by side."""
        tokens = Encoded(self.pipeline_.codec.raster_tokens(images))
        features = self.pipeline_.features(tokens, self.layer, self.pool)
        return features.reshape(len(images), -1)

    def _pixels(self, X: Any, *, fitting: bool) -> Pixels:
        """uint8 [N, S, S, 3] of the model's size S; a table's columns are recorded or compared."""
        size, transform = self.pipeline_.image_size, self.pipeline_.transform
        if isinstance(X, Image.Image | str | Path):
            raise InvalidInput("X is one picture: put it into a list")
        if _is_list_of_pictures(X):
            pictures = [self._as_bytes(x) if isinstance(x, np.ndarray) else x for x in X]
            return as_pixels(pictures, size, transform)
        numbers = X if hasattr(X, "ndim") else np.asarray(X)
        if numbers.ndim > 2:
            numbers = check_array(numbers, allow_nd=True)
        else:
            numbers = _squares(validate_data(self, numbers, reset=fitting))
        return as_pixels(_rgb(self._as_bytes(numbers)), size, transform)

    def _as_bytes(self, numbers: npt.NDArray[Any]) -> Pixels:
        """Numbers of any shape as uint8, full brightness at 255."""
        assert_all_finite(numbers)  # which was checked of all but lists of arrays
        check_non_negative(numbers, type(self).__name__)
        integers, high = np.issubdtype(numbers.dtype, np.integer), numbers.max()
        white = self.white or (255 if integers else 1)
        if high > white:
            raise InvalidInput(
                f"X has values up to {high}, above {white}: give `white`, the value of full "
                "brightness"
            )
        # Up to 16 of 256 levels, the white of scikit-learn's digits.
        if self.white is None and 0 < high <= (256 if integers else 1) / DARK:
            warnings.warn(
                f"X has values up to {high} only, and {white} was taken for white, so the pictures "
                "are nearly black: give `white`, the value of full brightness",
                stacklevel=2,
            )
        if white == 255 and numbers.dtype == np.uint8:
            return numbers
        return np.rint(numbers * (255 / white)).astype(np.uint8)


class ImageGPTFeatures(TransformerMixin, _PictureEstimator):  # type: ignore[misc]
    """Pictures to what the layers of a model know of them, float32 [N, F].

    `run` is a run, a model folder, or what `igpt.load` gave. `layer` and `pool` are those of
    `Pipeline.features`; several layers stand side by side. `white` is the value of full brightness
    where X is numbers: 255 for integers and 1 for floats unless it is given (16 for scikit-learn's
    digits). fit only loads the run and checks X. Of a BERT model, which pixels are hidden depends
    on a picture's place in X.

    Raises UserError for a broken run and for layers and pools that the model does not have.
    """

    def __init__(
        self,
        run: str | Path | Pipeline,
        layer: int | str = "all",
        pool: str = "mean",
        white: float | None = None,
    ) -> None:
        super().__init__(run, layer, pool, white)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 scikit-learn's signature
        """Load the run, and check the options and the pictures X."""
        self._load()
        self._pixels(X, fitting=True)
        return self

    def transform(self, X: Any) -> Features:
        """Features [N, F] of pictures X."""
        check_is_fitted(self)
        return self._features(self._pixels(X, fitting=False))

    def get_feature_names_out(
        self,
        input_features: Any = None,  # noqa: ARG002 scikit-learn's signature
    ) -> npt.NDArray[np.object_]:
        """Names [F], as layer3_17: number 17 of layer 3."""
        check_is_fitted(self)
        config = self.pipeline_.model.config
        width = pool_width(make_pool(self.pool, self.pipeline_.codec), config)
        layers = parse_layers(str(self.layer), config.n_layer)
        names = [f"layer{layer}_{i}" for layer in layers for i in range(width)]
        return np.array(names, dtype=object)


class ImageGPTClassifier(ClassifierMixin, _PictureEstimator):  # type: ignore[misc]
    """A linear probe: logistic regression on a model's standardised features.

    Where they outnumber the pictures, on their 256 principal components, as `igpt probe` does.

    `run`, `layer`, `pool` and `white` are those of `ImageGPTFeatures`. `C` is the inverse of the
    L2 penalty; None lets the accuracy in stratified cross-validation choose it.

    After fit: `classes_` [C], the strength `C_`, and the `probe_` on raw features.
    """

    def __init__(
        self,
        run: str | Path | Pipeline,
        layer: int | str = "all",
        pool: str = "mean",
        white: float | None = None,
        C: float | None = None,
    ) -> None:
        super().__init__(run, layer, pool, white)
        self.C = C

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the probe to pictures X and their classes y [N], numbers or words.

        Raises ValueError for fewer than two classes, and where C is to be chosen and a class has
        one picture only; UserError as `ImageGPTFeatures`.
        """
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self._load()
        images = self._pixels(X, fitting=True)
        check_consistent_length(images, y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidInput("a classifier needs pictures of two classes or more, got 1 class")
        features = self._features(images)
        components = usual_components(features.shape[1], len(features))  # for the folds as well
        self.C_ = _choose_strength(features, labels, components) if self.C is None else self.C
        (self.probe_,) = _probes(features, labels, len(self.classes_), [self.C_], components)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Logits [N, C] of pictures X; of two classes, how far the second is ahead, [N]."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities [N, C] of pictures X."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most likely class [N] of pictures X."""
        likeliest = self._logits(X).argmax(axis=1)
        return self.classes_[likeliest]

    def _logits(self, X: Any) -> Floats:
        check_is_fitted(self)
        features = self._features(self._pixels(X, fitting=False))
        # In float64, so that company in X does not change a picture's own numbers.
        return features.astype(np.float64) @ self.probe_.weight.T + self.probe_.bias


def _is_list_of_pictures(X: Any) -> bool:
    """Whether X is a list or column of PIL images, paths, or arrays of several sizes; else it must
    be numbers. Raises InvalidInput for what can be looked at only once.
    """
    if isinstance(X, Iterator):
        raise InvalidInput("X must be a list, not an iterator: list(X)")
    if not isinstance(X, Iterable) or getattr(X, "ndim", 1) != 1:
        return False
    first = next(iter(X), None)
    if isinstance(first, np.ndarray):
        return first.ndim > 1 and len({np.shape(x) for x in X}) > 1
    return isinstance(first, Image.Image | str | Path)


def _squares(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows [N, H*H] or [N, H*H*3] as [N, H, H] or [N, H, H, 3]; no number is both."""
    n, width = table.shape
    grey, colour = isqrt(width), isqrt(width // 3)
    if width == grey**2:
        return table.reshape(n, grey, grey)
    if width == colour**2 * 3:
        return table.reshape(n, colour, colour, 3)
    raise InvalidInput(
        f"X has {width} features: a row must be a square picture of H*H or H*H*3 numbers"
    )


def _rgb(images: Pixels) -> Pixels:
    """[N, H, W, 3] of grey or colour pictures."""
    if images.ndim == 3:
        return np.repeat(images[..., None], 3, axis=3)
    if images.ndim == 4 and images.shape[3] == 3:
        return images
    raise InvalidInput(f"pictures must be [N, H, W] or [N, H, W, 3], got {list(images.shape)}")


def _probes(
    features: Features,
    labels: Labels,
    n_classes: int,
    strengths: Sequence[float],
    components: int,
) -> list[LinearProbe]:
    """A probe on features [N, F], or that many components of them, for each strength."""
    transform = FeatureTransform.fit(features, components)
    path = logistic_path(transform(features), labels, n_classes, strengths)
    return [transform.fold(weight, bias) for weight, bias in path]


def _choose_strength(features: Features, labels: Labels, components: int) -> float:
    """The strength with the best accuracy in cross-validation; of equals the least log loss."""
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise InvalidInput("choosing C takes two pictures of every class or more: give C")
    folds = StratifiedKFold(min(FOLDS, counts.min()), shuffle=True, random_state=0)
    right, loss = np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    for train, held_out in folds.split(features, labels):
        probes = _probes(features[train], labels[train], len(counts), STRENGTHS, components)
        logits = [probe.logits(features[held_out]) for probe in probes]
        right += [(each.argmax(axis=1) == labels[held_out]).sum() for each in logits]
        loss += [len(held_out) * log_loss(each, labels[held_out]) for each in logits]
    return STRENGTHS[np.lexsort((loss, -right))[0]]
