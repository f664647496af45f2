"""A run as others get it: the model folder with a card, and its way to the Hub."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igpt.checkpoint import RunDirectory
from igpt.config import METRICS, Recipe, UserError, first_line
from igpt.data.sources import short_name
from igpt.disk import new_folder, read_json, write_json, write_text
from igpt.folder import GENERATIVE_HEAD, INDEX, RECIPE, STEM, WEIGHTS, save_model
from igpt.monitor import Seen, best_value, last_step, read_metrics
from igpt.parallel.processes import from_first, on_first
from igpt.plots.sheets import picture_sheet, save_image
from igpt.probe.store import PROBE, RESULTS, Fingerprint, fingerprint, load_probe
from igpt.probe.unfinished import UNFINISHED
from igpt.recipes import recipe_yaml
from igpt.sample import Sampling

if TYPE_CHECKING:
    from igpt.pipeline import Pipeline

SAMPLES = 16  # pictures of the card's sheet
SHEET = "samples.png"
# Of an earlier push to the same model, which this one may not have; other files there stay.
STALE = [
    WEIGHTS,
    INDEX,
    GENERATIVE_HEAD,
    f"{STEM}.safetensors",
    RECIPE,
    "metrics.jsonl",
    "palette.npy",
    "probe/*",
    SHEET,
]
PATHS = ("run", "data", "out")  # what the results of a probe tell of folders


def save(pipeline: Pipeline, folder: Path) -> None:
    """Write what `igpt.load` reads: the model and, of a run, its recipe and its probe.

    All processes call this. Raises UserError for a folder that cannot be written.
    """
    save_model(folder, pipeline.model, pipeline.codec, pipeline.class_names)
    source = pipeline.folder
    if source is None or source.resolve() != folder.resolve():
        # All weights are read for it, so only where there is a probe; all processes do alike.
        probed = source is not None and from_first((source / "probe" / PROBE).is_file)
        made_for = fingerprint(pipeline.model, pipeline.codec) if probed else None
        on_first(lambda: _save_run(source, folder, made_for))


def _save_run(source: Path | None, folder: Path, made_for: Fingerprint | None) -> None:
    """The recipe and the probe of the model `source`, in place of those of an earlier one.

    `made_for` is the model's fingerprint, None where the source has no probe.
    """
    unready = shutil.ignore_patterns(UNFINISHED, ".*.tmp")
    try:
        for stale in (RECIPE, f"probe/{PROBE}", f"probe/{RESULTS}"):
            (folder / stale).unlink(missing_ok=True)
        if source is not None and RunDirectory(source).exists():
            shutil.copy(source / RECIPE, folder)
        if source and made_for and _is_of(source / "probe", made_for):
            shutil.copytree(source / "probe", folder / "probe", ignore=unready, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error}") from error


def _is_of(probe: Path, model: Fingerprint) -> bool:
    """Whether the probe in a folder is of the model; a warning tells of one of another."""
    try:
        load_probe(probe, model)
    except UserError as error:
        warnings.warn(f"the probe is left out: {error}", stacklevel=2)
        return False
    return True


def write_folder(pipeline: Pipeline, path: Path, name: str, license: str | None) -> None:
    """Write all that is shared of a model: weights, processor, recipe, metrics, probe, card, sheet.

    `name` is the title and the id that the card's examples use; `license` an identifier of the Hub,
    like `mit`. Names of local folders are shortened to their last part. Raises UserError when
    `path` exists and is not empty.
    """
    with new_folder(path) as folder:
        save(pipeline, folder)
        pipeline.palette.save(folder / "palette.npy")
        recipe, rows, probed = None, [], _shorten_paths(folder / "probe" / RESULTS)
        if pipeline.folder is not None and RunDirectory(folder).exists():
            recipe = _without_paths(RunDirectory(folder).recipe())
            write_text(folder / RECIPE, recipe_yaml(recipe))
            metrics = RunDirectory(pipeline.folder).metrics
            if metrics.is_file():
                shutil.copy(metrics, folder / metrics.name)
                rows = read_metrics(metrics)
        if pipeline.model.config.can_sample:
            samples = np.concatenate(list(pipeline.sample_batches(SAMPLES, Sampling())))
            save_image(picture_sheet(samples), folder / SHEET)
        write_text(folder / "README.md", card(pipeline, name, license, recipe, rows, probed))


def push(
    pipeline: Pipeline,
    model_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload what `write_folder` writes as the Hub model `model_id`; its address.

    Raises UserError, one line, when the Hub is out of reach or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        with _one_line(model_id):  # before minutes of painting
            api.create_repo(model_id, private=private, exist_ok=True)
            if private and not api.model_info(model_id).private:  # it was there before
                raise UserError("it is there already, and public: make it private on the Hub first")
            if revision is not None:
                api.create_branch(model_id, branch=revision, exist_ok=True)
        write_folder(pipeline, folder, model_id, license)
        with _one_line(model_id):
            return str(
                api.upload_folder(
                    repo_id=model_id,
                    folder_path=folder,
                    revision=revision,
                    commit_message=commit_message,
                    delete_patterns=STALE,
                )
            )


@contextmanager
def _one_line(model_id: str) -> Iterator[None]:
    """Errors of the Hub, and of whatever HTTP library it uses, as UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(f"cannot upload {model_id}: {first_line(error)}") from error


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe without names of folders that mean nothing, or too much, elsewhere."""
    path, start = recipe.palette.path, recipe.init_from
    return replace(
        recipe,
        init_from=start and _without_place(start),
        data=replace(recipe.data, source=_without_place(recipe.data.source)),
        palette=replace(recipe.palette, path=None if path is None else "palette.npy"),
    )


def _without_place(source: str) -> str:
    """A source without the folder that a local path is in; what is left is a path too."""
    name = short_name(source)
    return name if name == source else f"./{name}"


def _shorten_paths(results: Path) -> dict[str, Any]:
    """The same of what a probe reached, if it is there; what is told then."""
    if not results.is_file():
        return {}
    values = read_json(results)
    told = {**values, **{name: short_name(values[name]) for name in PATHS}}
    write_json(results, told)
    return told


def card(
    pipeline: Pipeline,
    name: str,
    license: str | None,
    recipe: Recipe | None = None,
    metrics: Sequence[Seen] = (),
    probed: Mapping[str, Any] | None = None,
) -> str:
    """The model card, as Markdown with the Hub's header.

    `metrics` are the rows of a run's log, `probed` the results of its probe.
    """
    from huggingface_hub import ModelCardData

    config = pipeline.model.config
    task = "image-classification" if config.n_classes else "unconditional-image-generation"
    header = ModelCardData(
        license=license, library_name="igpt", tags=["imagegpt", "igpt"], pipeline_tag=task
    )
    facts = _facts(pipeline, recipe, metrics, probed)
    rows = [f"| {what} | {value} |" for what, value in facts.items()]
    use = [f'p = igpt.load("{name}")']
    use += ["p.sample(16)"] if config.can_sample else []
    use += ['p.predict("picture.png")'] if config.n_classes else ['p.features("picture.png")']
    return "\n".join(
        [
            f"---\n{header.to_yaml()}\n---",
            "",
            f"# {name}",
            "",
            *([f"![Pictures that the model painted]({SHEET})", ""] if config.can_sample else []),
            "| | |\n|---|---|",
            *rows,
            "",
            "```python\nimport igpt\n",
            *use,
            "```",
            "",
            *_with_transformers(pipeline, name),
            "",
            _repeated(recipe),
        ]
    )


def _facts(
    pipeline: Pipeline,
    recipe: Recipe | None,
    metrics: Sequence[Seen],
    probed: Mapping[str, Any] | None,
) -> dict[str, str]:
    """The card's table: what is known of the model."""
    config, codec = pipeline.model.config, pipeline.codec
    parameters = sum(parameter.numel() for parameter in pipeline.model.parameters())
    # A run may have been stopped before its last step.
    steps = recipe and (last_step(metrics) if metrics else recipe.train.steps)
    facts = {
        "model": f"Image GPT, {config.kind}; {config.n_layer} layers, width {config.n_embd}, "
        f"{config.n_head} heads; {parameters:,} parameters",
        "pictures": f"{codec.image_size}x{codec.image_size}, {codec.vocab_size} colours, "
        f"order {codec.order}",
        "started from": recipe and recipe.init_from and short_name(recipe.init_from),
        "data": recipe and short_name(recipe.data.source),
        "training": recipe and f"{steps:,} steps of {recipe.train.batch_size} pictures",
        "validation": _validated(metrics),
        "probe": _probed(probed),
        "classes": ", ".join(pipeline.class_names),
    }
    return {what: value for what, value in facts.items() if value}


def _repeated(recipe: Recipe | None) -> str:
    """How the training is repeated, where it began from nothing."""
    if recipe is None or recipe.init_from:
        return ""
    data = " --data PICTURES" if recipe.data.source.startswith("./") else ""
    return f"`recipe.yaml` repeats the training: `igpt pretrain recipe.yaml{data} --out RUN`."


def _validated(metrics: Sequence[Seen]) -> str:
    """The best that a run reached on its validation pictures; empty where that is not known."""
    loss = best_value(metrics, "val_loss")
    reached = [] if loss is None else [f"{loss:.4f} nats/pixel"]
    for metric in METRICS:
        if (value := best_value(metrics, f"val_{metric}")) is not None:
            reached.append(f"{_words(metric)} {100 * value:.1f} %")
    return ", ".join(reached)


def _probed(results: Mapping[str, Any] | None) -> str:
    """What a probe reached on test, by its number of labels; empty without one."""
    if not results:
        return ""
    metric, summaries = results["metric"], results["summaries"]
    reached = [
        f"{100 * summary[metric][0]:.1f} % with {summary['labels_per_class'] or 'all'} labels"
        + (" a class" if summary["labels_per_class"] else "")
        for summary in summaries
        if summary["method"] == summaries[0]["method"]  # the others are baselines
    ]
    return f"layer {results['layer']}: {_words(metric)} on test {', '.join(reached)}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _with_transformers(pipeline: Pipeline, name: str) -> list[str]:
    """How `transformers` computes the model, or that it does not."""
    config = pipeline.model.config
    if not config.causal or pipeline.order != "raster":
        return [
            "`transformers` loads these weights but computes something else: it knows no BERT "
            "models, and its processor reads pixels row by row."
        ]
    theirs = "ForImageClassification" if config.n_classes else "ForCausalImageModeling"
    differs = config.n_classes and config.shift  # as fine-tuning here leaves it (docs/interop.md)
    return [
        "With `transformers`, which puts no start token before the pixels"
        + (" as the training did, so that its logits differ slightly" if differs else "")
        + ". Its processor squashes pictures that are not square, where igpt crops them:",
        "",
        "```python",
        f"from transformers import AutoImageProcessor, ImageGPT{theirs}",
        "",
        f'processor = AutoImageProcessor.from_pretrained("{name}")',
        f'model = ImageGPT{theirs}.from_pretrained("{name}")',
        "```",
    ]
