"""From tokens to classes: by a fine-tuned head or by a probe, and how well.

A BERT model is shown its pictures masked, as in training, and several masks vote (paper, section
4.6): the modal class, ties at random, or the class of the averaged logits.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt.config import Ensemble, UserError
from igpt.data.labels import LARGEST_LABEL
from igpt.evaluate import in_batches, in_dtype
from igpt.model import ImageGPT
from igpt.order import Codec
from igpt.probe.features import extract, make_pool, trunk_inputs
from igpt.probe.linear import metric_value
from igpt.probe.store import LearnedFrom, SavedProbe
from igpt.rng import numpy_rng
from igpt.types import Floats, Labels

Logits = npt.NDArray[np.float32]

MASKS = 5  # that vote on a picture (paper, section 4.6)
CALIBRATION_BINS = 15  # Guo et al., 2017, On Calibration of Modern Neural Networks


@dataclass(frozen=True)
class Prediction:
    """What a model thinks of N pictures."""

    labels: Labels  # [N]
    probabilities: Floats  # [N, C]; of several masks their mean, or of the mean logits
    class_names: tuple[str, ...]  # C

    @property
    def names(self) -> list[str]:
        """The names [N] of the classes `labels`."""
        return [self.class_names[label] for label in self.labels]


def as_classes(
    labels: Labels, names: Sequence[str] | None, known: Sequence[str], source: str
) -> Labels:
    """Labels [N] of a source, as numbers of the classes `known` to a classifier; -1 stays.

    By their `names`, so that a source may have fewer classes or another order; a label without a
    name has the name "7" if the classes are called so. Else by their numbers, with a warning: the
    source has no names, or the classifier was made from one that had none. Raises UserError for a
    class that the classifier does not have.
    """
    place = {name: i for i, name in enumerate(known)}
    present = np.unique(labels[labels >= 0])
    most = present.max(initial=-1)
    if names is None and most <= LARGEST_LABEL and all(name.isdecimal() for name in known):
        names = tuple(map(str, range(most + 1)))
    missing = {} if names is None else {i: names[i] for i in present if names[i] not in place}
    if names is not None and not missing:
        places = np.array([*(place.get(name, -1) for name in names), -1])
        return np.asarray(places[np.maximum(labels, -1)])  # any negative label is a missing one
    by_number = tuple(known) == tuple(map(str, range(len(known)))) and len(missing) == len(present)
    if missing and not by_number:
        unknown = ", ".join([*missing.values()][:5])
        raise UserError(
            f"{source}: the classifier does not know {unknown}; it knows "
            f"{', '.join(known[:10])}{', …' * (len(known) > 10)}"
        )
    if most >= len(known):
        raise UserError(f"{source}: label {most}, but the classifier knows 0 to {len(known) - 1}")
    if len(present):
        number = present[0]
        warnings.warn(
            f"{source}: its classes are matched by number, so "
            f"{names[number] if names else number} is taken for {known[number]}",
            stacklevel=2,
        )
    return labels


class Classifier(ABC):
    """Classes of pictures given as tokens, on which `masks` masks vote where the model is BERT."""

    learned_from: LearnedFrom | None = None  # None: from what the run names, or not known

    def __init__(
        self,
        model: ImageGPT,
        class_names: tuple[str, ...],
        ensemble: Ensemble = "modal",
        masks: int = MASKS,
    ) -> None:
        self.model, self.class_names = model, class_names
        self.ensemble, self.masks = ensemble, 1 if model.config.causal else masks

    def predict(
        self,
        tokens: Tensor,
        dtype: torch.dtype = torch.float32,
        check: Callable[[], None] | None = None,
    ) -> Prediction:
        """Of pictures `tokens` [N, T] in the model's order.

        `check` is called before every batch and may raise.
        """
        logits = [self._logits(tokens, dtype, mask, check) for mask in range(self.masks)]
        return vote(np.stack(logits, axis=1), self.ensemble, self.class_names)

    @abstractmethod
    def _logits(
        self, tokens: Tensor, dtype: torch.dtype, mask: int, check: Callable[[], None] | None
    ) -> Logits:
        """[N, C], by the mask of that number."""


class HeadClassifier(Classifier):
    """The model's own classification head, as fine-tuning left it."""

    def _logits(
        self, tokens: Tensor, dtype: torch.dtype, mask: int, check: Callable[[], None] | None
    ) -> Logits:
        model = self.model
        compute = in_dtype(lambda *x: model.classify(model.trunk(*x)).float(), model, dtype)

        def logits(part: Tensor, start: int) -> Tensor:
            return compute(*trunk_inputs(model, part, start, mask))

        return torch.cat(list(in_batches(tokens, logits, check=check))).cpu().numpy()


class ProbeClassifier(Classifier):
    """A probe on the features of a frozen model."""

    def __init__(
        self,
        model: ImageGPT,
        codec: Codec,
        saved: SavedProbe,
        ensemble: Ensemble = "modal",
        masks: int = MASKS,
    ) -> None:
        super().__init__(model, saved.class_names, ensemble, masks)
        self.saved, self.pool = saved, make_pool(saved.pool, codec)
        self.learned_from = saved.learned_from

    def _logits(
        self, tokens: Tensor, dtype: torch.dtype, mask: int, check: Callable[[], None] | None
    ) -> Logits:
        probe, layers = self.saved.probe, self.saved.layers
        batches = extract(
            self.model, tokens, layers, self.pool, dtype=dtype, mask=mask, check=check
        )
        return np.concatenate([probe.logits(x.reshape(len(x), -1)) for x in batches])


def vote(logits: Logits, ensemble: Ensemble, class_names: tuple[str, ...]) -> Prediction:
    """One prediction a picture from logits [N, masks, C]."""
    if ensemble == "logits":
        logits = logits.mean(axis=1, keepdims=True)
    n, masks, n_classes = logits.shape
    probabilities = torch.from_numpy(logits).double().softmax(dim=-1).mean(dim=1).numpy()
    if masks == 1:  # of one vote the modal class is the likeliest
        return Prediction(logits[:, 0].argmax(axis=1), probabilities, class_names)
    ballots = logits.argmax(axis=2)  # [N, masks]
    counts = (ballots[:, :, None] == np.arange(n_classes)).sum(axis=1).astype(np.float64)
    ties = numpy_rng(0, "ties").random((n, n_classes))  # below one vote
    return Prediction((counts + ties).argmax(axis=1), probabilities, class_names)


@dataclass(frozen=True)
class Report:
    """How predictions compare with labels."""

    accuracy: float
    balanced_accuracy: float  # mean of the recalls of the classes that occur
    precision: Floats  # [C]; 0 for a class that was never predicted
    recall: Floats  # [C]; 0 for a class that never occurs
    support: Labels  # [C], pictures of each class
    confusion: Labels  # [C, C], rows are true classes
    calibration_error: float  # expected, over 15 bins of confidence


def report(labels: Labels, prediction: Prediction) -> Report:
    """Compare with labels [N], classes of the classifier; pictures of label -1 are left out."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    at = (labels >= 0).nonzero()[0]
    labels = labels[at]
    prediction = replace(
        prediction, labels=prediction.labels[at], probabilities=prediction.probabilities[at]
    )
    classes = np.arange(prediction.probabilities.shape[1])
    precision, recall, _, support = precision_recall_fscore_support(
        labels, prediction.labels, labels=classes, zero_division=0
    )
    return Report(
        accuracy=metric_value("accuracy", labels, prediction.labels),
        balanced_accuracy=metric_value("balanced_accuracy", labels, prediction.labels),
        precision=precision,
        recall=recall,
        support=support.astype(np.int64),
        confusion=confusion_matrix(labels, prediction.labels, labels=classes),
        calibration_error=calibration_error(labels, prediction),
    )


def calibration_error(labels: Labels, prediction: Prediction) -> float:
    """Expected calibration error: the mean distance of confidence from accuracy, bin by bin."""
    rows = np.arange(len(labels))
    confidence = prediction.probabilities[rows, prediction.labels]
    right = (prediction.labels == labels).astype(np.float64)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, right - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))
