"""The scikit-learn estimators: scikit-learn's own checks, and its tools on the digits."""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import igpt
from igpt.data.decode import imagenet_centre
from igpt.probe.linear import STRENGTHS, FeatureTransform
from igpt.sklearn import ImageGPTClassifier, ImageGPTFeatures, _choose_strength

# scikit-learn's checks make up tables. Some of these cannot be pictures, whatever we do.
NO_SQUARE = "its rows have 2, 5 or 10 numbers, and no square picture has"
NEGATIVE = "its blobs go below zero, whatever the tag positive_only says, and no pixel does"
NOT_FOR_PICTURES = dict.fromkeys(
    (
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_overwrite_params",
        "check_fit2d_1sample",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_n_features_in",
        "check_readonly_memmap_input",
    ),
    NO_SQUARE,
)
NOT_FOR_PICTURES_WITH_CLASSES = NOT_FOR_PICTURES | dict.fromkeys(
    (
        "check_classifier_data_not_an_array",
        "check_classifiers_classes",
        "check_classifiers_train",
    ),
    NO_SQUARE,
)
NOT_FOR_PICTURES_WITH_CLASSES["check_decision_proba_consistency"] = NEGATIVE


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> igpt.Pipeline:
    return igpt.load(tiny_run)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Rows [300, 64] of 0 to 16, classes [300]."""
    bunch = load_digits()
    return bunch.data[:300], bunch.target[:300]


@pytest.fixture(scope="module")
def images(digits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The same as pictures, uint8 [300, 8, 8]."""
    return np.rint(digits[0] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)


def assert_only_expected_failures(estimator: BaseEstimator, expected: dict[str, str]) -> None:
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == {
        *expected
    }
    assert sum(result["status"] == "passed" for result in results) > 30


# `white` is given to the checks because their floats go beyond 1.


def test_the_features_pass_scikit_learns_checks_as_far_as_pictures_allow(tiny_run: Path) -> None:
    assert_only_expected_failures(ImageGPTFeatures(tiny_run, white=255), NOT_FOR_PICTURES)


def test_the_classifier_passes_scikit_learns_checks_as_far_as_pictures_allow(
    tiny_run: Path,
) -> None:
    classifier = ImageGPTClassifier(tiny_run, white=255)
    assert_only_expected_failures(classifier, NOT_FOR_PICTURES_WITH_CLASSES)


def any_table(table: np.ndarray) -> np.ndarray:
    """Rows [N, F] of any length as grey pictures with some contrast, with zeros at the end."""
    side = math.isqrt(table.shape[1] - 1) + 1
    padded = np.zeros((len(table), side * side))
    padded[:, : table.shape[1]] = np.minimum(30 * table, 255)
    return padded.reshape(-1, side, side)


@pytest.mark.parametrize(
    ("kind", "options"), [(ImageGPTFeatures, {}), (ImageGPTClassifier, {"C": 1.0})]
)
def test_those_checks_pass_too_where_every_row_is_a_picture(
    kind: type[BaseEstimator],
    options: dict[str, float],
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("igpt.sklearn._squares", any_table)
    passed = set()
    estimator = kind(tiny_run, white=255, **options)
    for _, check in estimator_checks_generator(estimator, mark=None):
        name = check.func.__name__
        if NOT_FOR_PICTURES_WITH_CLASSES.get(name) == NO_SQUARE:
            check(estimator)
            passed.add(name)
    assert passed >= {*NOT_FOR_PICTURES}


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize(("layer", "pool"), [("all", "mean"), (1, "grid:2"), ("0:1", "last")])
def test_the_features_are_those_of_the_pipeline(
    tiny_run: Path, images: np.ndarray, layer: int | str, pool: str
) -> None:
    pipeline = igpt.load(tiny_run)
    expected = pipeline.features(images[:5], layer, pool).reshape(5, -1)
    for run in (tiny_run, str(tiny_run), pipeline):
        features = ImageGPTFeatures(run, layer, pool).fit_transform(images[:5])
        assert features.dtype == np.float32
        assert np.array_equal(features, expected)


def test_every_form_of_picture_gives_the_same_features(
    pipeline: igpt.Pipeline,
    digits: tuple[np.ndarray, np.ndarray],
    images: np.ndarray,
    tmp_path: Path,
) -> None:
    few = images[:3]
    pictures = [Image.fromarray(pixels) for pixels in few]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    colour = np.repeat(few[..., None], 3, axis=3)
    expected = ImageGPTFeatures(pipeline).fit_transform(few)
    forms = [
        colour,
        few.reshape(3, -1),
        colour.reshape(3, -1),
        few / 255,
        few.astype(int).tolist(),
        list(colour),
        pd.DataFrame(few.reshape(3, -1)),
        torch.from_numpy(few),
        pictures,
        paths,
        [pictures[0], str(paths[1]), paths[2]],
        pd.Series([str(path) for path in paths]),
    ]
    for form in forms:
        assert np.array_equal(ImageGPTFeatures(pipeline).fit_transform(form), expected)
    scaled = ImageGPTFeatures(pipeline, white=16)
    assert np.array_equal(scaled.fit_transform(digits[0][:3]), expected)


def test_pictures_of_another_size_are_resized(pipeline: igpt.Pipeline, images: np.ndarray) -> None:
    large = images[:2].repeat(2, axis=1).repeat(2, axis=2)  # [2, 16, 16]
    transformer = ImageGPTFeatures(pipeline).fit(images)
    assert np.array_equal(transformer.transform(large), pipeline.features(large).reshape(2, -1))


def test_a_list_may_hold_pictures_of_several_sizes(
    pipeline: igpt.Pipeline, images: np.ndarray
) -> None:
    several = [images[0], images[1].repeat(2, axis=0).repeat(2, axis=1), images[2, :6]]
    found = ImageGPTFeatures(pipeline).fit_transform(several)
    assert np.array_equal(found, pipeline.features(several).reshape(3, -1))
    faint = [np.rint(x / 255 * 16) for x in several]
    scaled = ImageGPTFeatures(pipeline, white=16).fit_transform(faint)
    restored = [np.rint(x * (255 / 16)).astype(np.uint8) for x in faint]
    assert np.array_equal(scaled, pipeline.features(restored).reshape(3, -1))


@pytest.mark.filterwarnings("ignore:pictures of 8 pixels are enlarged")
def test_pictures_are_cropped_once_as_the_run_crops_them(
    tiny_run: Path, images: np.ndarray
) -> None:
    cropping = igpt.load(tiny_run)
    cropping.transform = imagenet_centre
    few = np.repeat(images[:3, ..., None], 3, axis=3)
    expected = cropping.features(few).reshape(3, -1)
    for form in (few, [Image.fromarray(pixels) for pixels in few]):
        assert np.array_equal(ImageGPTFeatures(cropping).fit_transform(form), expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_integers_of_another_white_are_not_black_in_silence(
    pipeline: igpt.Pipeline, digits: tuple[np.ndarray, np.ndarray], kind: type
) -> None:
    rows = digits[0].astype(kind)  # 0 to 16
    with pytest.warns(UserWarning, match="up to 16 only, and 255 was taken .* give `white`"):
        ImageGPTFeatures(pipeline).fit(rows)
    with pytest.warns(UserWarning, match="and 1 was taken for white"):
        ImageGPTFeatures(pipeline).fit(digits[0] / 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageGPTFeatures(pipeline, white=16).fit(rows)
        ImageGPTFeatures(pipeline).fit(rows + 1)
        ImageGPTFeatures(pipeline).fit(rows * 0)


def test_each_feature_has_a_name(pipeline: igpt.Pipeline, images: np.ndarray) -> None:
    transformer = ImageGPTFeatures(pipeline, "1:2", "grid:2").set_output(transform="pandas")
    frame = transformer.fit_transform(images[:2])
    width = 4 * pipeline.model.config.n_embd
    assert frame.shape == (2, 2 * width)
    assert [*frame.columns[[0, width, -1]]] == ["layer1_0", "layer2_0", f"layer2_{width - 1}"]


def test_a_table_must_keep_its_columns_until_the_next_fit(
    pipeline: igpt.Pipeline, images: np.ndarray
) -> None:
    transformer = ImageGPTFeatures(pipeline).fit(images.reshape(-1, 64))
    assert transformer.n_features_in_ == 64
    other = np.zeros((2, 16))
    with pytest.raises(ValueError, match="X has 16 features, but ImageGPTFeatures is expecting 64"):
        transformer.transform(other)
    transformer.fit(images)
    assert not hasattr(transformer, "n_features_in_")
    assert transformer.transform(other).shape[0] == 2


def test_it_works_in_a_pipeline_and_in_cross_validation(
    tiny_run: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    model = make_pipeline(
        ImageGPTFeatures(tiny_run, pool="grid:4", white=16),
        StandardScaler(),
        LogisticRegression(),
    )
    classifier = ImageGPTClassifier(tiny_run, pool="grid:4", white=16, C=0.1)
    for classifies in (model, classifier, make_pipeline(classifier)):
        accuracies = cross_val_score(classifies, *digits, cv=3, error_score="raise")
        assert accuracies.mean() > 0.7  # chance: 0.1


def test_a_grid_search_goes_over_layers_and_pools(
    tiny_run: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    classifier = ImageGPTClassifier(tiny_run, white=16, C=0.1)
    grid = {"layer": [0, "all"], "pool": ["mean", "grid:4"]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(*digits)
    assert search.best_params_["pool"] == "grid:4"
    assert search.score(*digits) > search.best_score_ > 0.5


def test_classes_may_be_words_and_the_strength_is_chosen(
    tiny_run: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits[0], np.array([f"digit {i}" for i in digits[1]])
    classifier = ImageGPTClassifier(tiny_run, pool="grid:4", white=16).fit(x[:200], y[:200])
    assert [*classifier.classes_] == [f"digit {i}" for i in range(10)]
    assert classifier.C_ in STRENGTHS
    assert classifier.score(x[200:], y[200:]) > 0.7
    probabilities = classifier.predict_proba(x[200:])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    likeliest = classifier.classes_[probabilities.argmax(axis=1)]
    assert np.array_equal(likeliest, classifier.predict(x[200:]))
    assert classifier.decision_function(x[200:]).shape == (100, 10)


class Oracle:
    """A probe that is always right, or never, and as sure as one likes; a feature is the class."""

    def __init__(self, right: bool, sure: float) -> None:
        self.right, self.sure = right, sure

    def logits(self, features: np.ndarray) -> np.ndarray:
        labels = features[:, 0].astype(np.int64)
        return self.sure * np.eye(2)[labels if self.right else 1 - labels]


@pytest.mark.parametrize("good", [{0.01}, {0.01, 1.0, 10.0}])
def test_the_best_strength_is_chosen_and_of_equals_the_likeliest(
    monkeypatch: pytest.MonkeyPatch, good: set[float]
) -> None:
    def probes(_x: object, _y: object, _n: int, strengths: list[float], _c: int) -> list[Oracle]:
        return [Oracle(s in good, sure=5 if s == 1.0 else 1) for s in strengths]

    monkeypatch.setattr("igpt.sklearn._probes", probes)
    labels = np.arange(20) % 2
    likeliest = 1.0 if 1.0 in good else 0.01
    assert _choose_strength(labels[:, None].astype(np.float32), labels, 0) == likeliest


def test_the_strength_is_chosen_for_as_many_components_as_are_fitted(
    pipeline: igpt.Pipeline, digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = digits
    asked: list[int] = []
    fit = FeatureTransform.fit

    def counted(features: np.ndarray, components: int) -> FeatureTransform:
        asked.append(components)
        return fit(features, components)

    monkeypatch.setattr(FeatureTransform, "fit", counted)
    # 48 features: fewer than the pictures, more than those of a fold.
    ImageGPTClassifier(pipeline, white=16).fit(images[:50], labels[:50])
    assert set(asked) == {0}


def test_two_classes_have_one_decision(
    pipeline: igpt.Pipeline, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits[0], digits[1] > 4
    classifier = ImageGPTClassifier(pipeline, white=16, C=0.1).fit(x, y)
    decision = classifier.decision_function(x)
    assert decision.shape == (300,)
    assert np.array_equal(decision > 0, classifier.predict(x))
    np.testing.assert_allclose(classifier.predict_proba(x)[:, 1], 1 / (1 + np.exp(-decision)))


def test_a_clone_shares_parameters_only_and_copies_no_model(
    tiny_run: Path, pipeline: igpt.Pipeline, images: np.ndarray
) -> None:
    transformer = ImageGPTFeatures(tiny_run).set_params(layer=1, pool="last").fit(images)
    copy = clone(transformer)
    assert copy.get_params() == transformer.get_params()
    assert not hasattr(copy, "pipeline_")
    shared = clone(ImageGPTFeatures(pipeline, 1, "last"))
    assert shared.run is pipeline  # not a model for each fold
    copies = shared.fit_transform(images[:3])
    assert np.array_equal(copies, transformer.transform(images[:3]))


def test_a_fitted_estimator_is_pickled_without_the_palettes_table(
    tiny_run: Path, images: np.ndarray
) -> None:
    transformer = ImageGPTFeatures(tiny_run).fit(images)
    pickled = pickle.dumps(transformer)
    assert len(pickled) < 1_000_000  # the table has 32 MB
    again = pickle.loads(pickled).transform(images[:3])
    assert np.array_equal(again, transformer.transform(images[:3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer '3': expected all, a layer of 0 to 2"),
        ({"pool": "max"}, "pool 'max'"),
        ({"run": "nowhere"}, "no run at nowhere"),
        ({"white": 0}, "white must be above 0"),
    ],
)
def test_a_wrong_option_is_told_by_fit(
    pipeline: igpt.Pipeline, images: np.ndarray, options: dict[str, object], message: str
) -> None:
    estimator = ImageGPTFeatures(**{"run": pipeline, **options})  # type: ignore[arg-type]
    with pytest.raises(igpt.UserError, match=message):
        estimator.fit(images)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 63), np.uint8), "63 features: a row must be a square picture"),
        (np.full((2, 64), 16.0), "values up to 16.0, above 1: give `white`"),
        (np.full((2, 64), 256), "values up to 256, above 255"),
        (np.full((2, 64), -1), "Negative values"),
        (np.full((2, 8, 8), np.nan), "NaN"),
        ([np.full((4, 4), np.nan), np.zeros((5, 5))], "NaN"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got \[2, 8, 8, 4\]"),
        (np.zeros((0, 8, 8), np.uint8), "0 sample"),
        (Image.new("L", (8, 8)), "one picture: put it into a list"),
        ("picture.png", "one picture: put it into a list"),
        ([], "array"),
        (iter([Image.new("L", (8, 8))] * 2), "a list, not an iterator"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_refused(pipeline: igpt.Pipeline, x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageGPTFeatures(pipeline).fit(x)


def test_a_classifier_needs_two_classes_and_two_pictures_of_each_to_choose(
    pipeline: igpt.Pipeline, images: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        ImageGPTClassifier(pipeline).fit(images[:3], [1, 1, 1])
    with pytest.raises(ValueError, match="two pictures of every class or more: give C"):
        ImageGPTClassifier(pipeline).fit(images[:3], [0, 1, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ImageGPTClassifier(pipeline).fit(images[:3], [0, 1])
    classifier = ImageGPTClassifier(pipeline, C=1.0).fit(images[:3], [0, 1, 1])
    assert classifier.C_ == 1.0
