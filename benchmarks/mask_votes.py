"""What masks that vote are worth to the probe of a BERT model (paper, section 4.6 and figure 4).

    python benchmarks/mask_votes.py RUN... [--labels-per-class 100] [--metric balanced_accuracy]

The probes are those of density.py: five subsets of labels, the layer chosen on validation, tested
on the first test pictures. Each is tested with one mask, the modal class of five, and the class of
their mean logits. Prints means and deviations, and what a vote gains, subset by subset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from density import add_probing, probing
from finetuning import VOTES, less, say, spread

from igpt.classify import ProbeClassifier
from igpt.config import METRICS
from igpt.probe.linear import metric_value
from igpt.probe.store import SavedProbe, fingerprint


def measure(run: Path, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """By the way to vote, both metrics on test, a value for each subset."""
    features, linear, chosen = probing(run, args)
    pipeline, test = features.pipeline, linear.task.test
    tokens, dtype = pipeline.tokens(test.images), pipeline.dtype("auto")
    made_for = fingerprint(pipeline.model, pipeline.codec)
    found: dict[str, dict[str, list[float]]] = {way: {m: [] for m in METRICS} for way in VOTES}
    for subset in chosen:
        fitted = linear.fit(subset).probe
        assert fitted is not None
        layers = features.extractor.groups[fitted.layer]
        names = linear.task.train.class_names
        saved = SavedProbe(fitted.probe, layers, args.pool, names, made_for)
        for way, (ensemble, masks) in VOTES.items():
            classifier = ProbeClassifier(pipeline.model, pipeline.codec, saved, ensemble, masks)
            predicted = classifier.predict(tokens, dtype)
            for metric in METRICS:
                value = metric_value(metric, test.labels, predicted.labels)
                found[way][metric].append(value)
        say(f"{run.name}, subset {subset.seed}, layer {fitted.layer}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    add_probing(parser)
    args = parser.parse_args()
    print(f"| probe on test, % | {' | '.join(METRICS)} |\n|---|---|---|")
    for run in args.runs:
        found = measure(run, args)
        single = next(iter(found.values()))
        for way, values in found.items():
            reached = " | ".join(spread(values[metric]) for metric in METRICS)
            print(f"| {run.name}, {way} | {reached} |", flush=True)
            if values is not single:
                gained = " | ".join(spread(less(values[m], single[m])) for m in METRICS)
                print(f"| less one mask, subset by subset | {gained} |", flush=True)


if __name__ == "__main__":
    main()
