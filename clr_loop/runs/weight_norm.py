"""The norm of the weights, for TensorBoard: an action in a file of its own."""

from __future__ import annotations

import numpy as np
from keras import ops
from typing_extensions import override

from clr_loop.runs.run import Action, Run


class WeightNorm(Action):
    """Writes the Euclidean norm of all trainable weights, as `train/weight_norm`, every so many batches."""

    def __init__(self, every: int) -> None:
        self._every = every

    @override
    def next_stop(self, run: Run) -> int:
        return run.position + self._every - run.position % self._every

    @override
    def act(self, run: Run) -> None:
        if run.position % self._every == 0 and run.step and run.records is not None:
            weights = [ops.convert_to_numpy(variable) for variable in run.loop.model.trainable_variables]
            norm = np.linalg.norm([np.linalg.norm(weight.astype(np.float64)) for weight in weights])
            run.records.add_scalars(run.step - 1, {"weight_norm": float(norm)})
