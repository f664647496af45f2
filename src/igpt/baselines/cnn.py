"""A small residual network, trained from scratch on the same labels: what people would use instead.

Three stages of one residual block (He et al., 2016), then a linear layer that sees a coarse grid;
SGD with Nesterov momentum, strong weight decay, smoothed labels and a cosine over its steps or its
minutes, whichever end first; the best weights on validation are kept. It has a training loop of its
own because it knows neither tokens nor checkpoints.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.config import UserError
from igpt.data.augment import move_pixels
from igpt.device import autocast, compute_dtype, default_device
from igpt.probe.linear import metric_value
from igpt.rng import numpy_rng, torch_rng
from igpt.types import Labels, Pixels

WIDTHS = (32, 64, 128)
GRID = 4  # the last layer sees GRID x GRID places
BATCH, RATE, MOMENTUM, WEIGHT_DECAY, WARMUP, SMOOTHING = 64, 0.05, 0.9, 1e-2, 0.1, 0.2
LEAST_STEPS, EPOCHS = 400, 20  # the longer of the two, unless the minutes are over before
VALIDATIONS, VALIDATED = 10, 2_000  # how often, and on how many pictures at most


class ResidualCNN(nn.Module):
    """Class logits [B, C] of pictures [B, 3, S, S] in [-1, 1]."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.stages = nn.Sequential(
            *(_Residual(before, width, 1 + (i > 0)) for i, (before, width) in enumerate(pairs))
        )
        self.out = nn.Linear(WIDTHS[-1] * GRID**2, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(self.stem(x))  # [B, 128, S/4, S/4]
        return self.out(F.adaptive_avg_pool2d(h, GRID).flatten(1))


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_conv(before, width, stride), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(_conv(width, width), nn.BatchNorm2d(width))
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def _conv(before: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, stride, padding=1, bias=False)


def train_cnn(
    images: Pixels,
    labels: Labels,
    validation_images: Pixels,
    validation_labels: Labels,
    n_classes: int,
    *,
    minutes: float,
    augmentation: str,
    metric: str,
    seed: int,
    least_steps: int = LEAST_STEPS,
) -> ResidualCNN:
    """The network with the weights that did best on validation pictures.

    Args:
        images, validation_images: uint8 [N, S, S, 3].
        minutes: of training at most.
        augmentation: none, flip or cifar.
        metric: accuracy or balanced_accuracy, by which validation chooses the weights.
        least_steps: of training, where EPOCHS are fewer and there are minutes for them.

    Raises UserError when all labels are the same.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("a classifier needs labels of two classes or more")
    device = default_device()
    model = _build(n_classes, seed).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    batch = min(BATCH, len(images))
    steps = max(least_steps, EPOCHS * len(images) // batch)
    some = numpy_rng(seed, "cnn validation").permutation(len(validation_images))[:VALIDATED]
    best, kept, checked = -1.0, model.state_dict(), 0.0
    began, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(progress / WARMUP, 0.5 + 0.5 * math.cos(math.pi * progress))
        rng = numpy_rng(seed, "cnn", step)
        rows = rng.choice(len(images), batch, replace=False)
        x = _normalise(move_pixels(images[rows], augmentation, rng)).to(device)
        with autocast(device, compute_dtype("auto", device)):
            logits, targets = model(x).float(), torch.from_numpy(labels[rows]).to(device)
            loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress = max(step / steps, (time.monotonic() - began) / (60 * minutes))
        if progress - checked >= 1 / VALIDATIONS or progress >= 1:
            checked = progress
            predicted = predict_cnn(model, validation_images[some])
            value = metric_value(metric, validation_labels[some], predicted)
            if value >= best:
                best, kept = value, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


def _build(n_classes: int, seed: int) -> ResidualCNN:
    """He's initialisation, drawn from the seed; the last layer starts at zero."""
    model, generator = ResidualCNN(n_classes), torch_rng(seed, "cnn")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    return model


@torch.inference_mode()
def predict_cnn(model: ResidualCNN, images: Pixels) -> Labels:
    """The most likely class [N] of pictures uint8 [N, S, S, 3]."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    parts = np.array_split(images, range(512, len(images), 512))
    with autocast(device, compute_dtype("auto", device)):
        found = [model(_normalise(part).to(device)).argmax(dim=1).cpu() for part in parts]
    model.train(training)
    return torch.cat(found).numpy()


def _normalise(images: Pixels) -> Tensor:
    """[B, 3, S, S] in [-1, 1], its channels last in memory."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)
