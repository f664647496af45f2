"""TensorFlow checkpoints, of one shard or many, through TensorFlow's own reader.

The extra `igpt[openai]` brings TensorFlow. It is imported when a checkpoint is opened, and asked
for arrays only: no graph is built or run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from igpt.config import UserError, first_line

# TensorFlow reads these when it is imported. They keep it from writing to stderr, about the
# processor or about products that are never computed here.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


class TensorFlowCheckpoint:
    """The variables of a checkpoint, read one at a time.

    `prefix` is what its files' names begin with: `model.ckpt-1000` for `model.ckpt-1000.index` and
    `model.ckpt-1000.data-00000-of-00032` to 31. Raises UserError when there is no such checkpoint,
    when its index is broken, and when TensorFlow is not installed.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = prefix.with_name(f"{prefix.name}.index")
        if not index.is_file():
            raise UserError(
                f"no checkpoint {prefix}: {index.name} is not there (give what the names of its "
                "files begin with, like model.ckpt-1000000)"
            )
        tensorflow = _tensorflow()
        try:
            self._reader = tensorflow.train.load_checkpoint(str(prefix))
            shapes = self._reader.get_variable_to_shape_map()
        except Exception as error:  # whatever a damaged index makes the reader raise
            raise self._broken(error) from error
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(shape) for name, shape in shapes.items()
        }

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A variable of `shapes`; UserError when its shard is missing, truncated or damaged."""
        try:
            return self._reader.get_tensor(name)
        except Exception as error:  # whatever a damaged shard makes the reader raise
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UserError:
        return UserError(f"checkpoint {self.prefix} is not whole: {first_line(error)}")


def _tensorflow() -> Any:
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            "OpenAI's checkpoints are read by TensorFlow: pip install tensorflow-cpu"
        ) from error
    return tensorflow
