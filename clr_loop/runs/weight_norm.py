"""The norm of the weights, for TensorBoard: an action in a file of its own."""

from __future__ import annotations

import numpy as np
from keras import ops
from typing_extensions import override

from clr_loop.runs.run import EveryBatches, Run


class WeightNorm(EveryBatches):
    """Writes the Euclidean norm of all trainable weights, as `train/weight_norm`, every so many batches."""

    @override
    def act(self, run: Run) -> None:
        if self.is_due(run) and run.step and run.records is not None:
            weights = [ops.convert_to_numpy(variable) for variable in run.loop.model.trainable_variables]
            norm = np.linalg.norm([np.linalg.norm(weight.astype(np.float64)) for weight in weights])
            run.records.add_scalars(run.step - 1, {"weight_norm": float(norm)})
