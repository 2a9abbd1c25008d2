"""The CLR repository's callback for Keras 3; `from clr_loop.schedules.keras_callback import CyclicLR` is all to change.

The original (B. Kenstler, CLR) stops on Keras 3 with `'Adam' object has no attribute 'lr'`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np

from clr_loop.schedules import base
from clr_loop.schedules.formulas import Cyclic, ExpRange, Triangular, Triangular2


class CyclicLR(keras.callbacks.Callback):
    """Sets the learning rate of `model.fit` before each batch, in cycles; any Keras optimizer, any backend.

        model.fit(x, y, callbacks=[CyclicLR(base_lr=0.001, max_lr=0.006, step_size=2000, mode="triangular2")])

    The first batch of a cycle runs at base_lr. One callback may serve several calls of `fit`: its cycle goes on.

    Args:
        base_lr: float, the lowest rate.
        max_lr: float, the highest rate.
        step_size: batches of half a cycle, a whole number (2000.0 will do); usually 2 to 10 epochs' worth.
        mode: "triangular", "triangular2" or "exp_range"; looked at only without a `scale_fn`.
        gamma: float in (0, 1], for "exp_range".
        scale_fn: a function of one number that returns a number in 0–1, the share of the full height; None goes by
            mode.
        scale_mode: what `scale_fn` is given: "cycle", the cycle's number counted from 1, or "iterations", the batches
            since the cycles began.

    Attributes:
        history: lists with an entry for each batch: `lr`, the rate that it ran at; `iterations`, its number, counted
            from 1 and never reset; and everything in its logs, such as `loss`.
        clr_iterations: int, batches since the cycles began.
        trn_iterations: int, batches trained on.
        schedule: the schedule that computes the rates.

    Raises:
        ValueError, TypeError: as `schedules.Cyclic`; ValueError for an unknown `mode`.
    """

    def __init__(
        self,
        base_lr: float = 0.001,
        max_lr: float = 0.006,
        step_size: float = 2000.0,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
    ) -> None:
        super().__init__()
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(f'mode must be "triangular", "triangular2" or "exp_range", received {mode!r}; choose one')
        self.base_lr, self.max_lr, self.step_size = base_lr, max_lr, step_size
        self.mode, self.gamma, self.scale_fn, self.scale_mode = mode, gamma, scale_fn, scale_mode
        self.trn_iterations = 0
        self.history: dict[str, list[Any]] = {}
        self._reset()

    def _reset(
        self, new_base_lr: float | None = None, new_max_lr: float | None = None, new_step_size: float | None = None
    ) -> None:
        """Begins the cycles anew, with other bounds where they are given; the next `fit` starts at base_lr.

        Raises:
            ValueError, TypeError: as `schedules.Cyclic`.
        """
        self.base_lr = self.base_lr if new_base_lr is None else new_base_lr
        self.max_lr = self.max_lr if new_max_lr is None else new_max_lr
        self.step_size = self.step_size if new_step_size is None else new_step_size
        self.clr_iterations = 0
        self.schedule = self._make_schedule()

    def clr(self) -> float:
        """Returns the rate of the next batch."""
        return float(self.schedule(self.clr_iterations))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate of the first batch.

        Raises:
            ValueError: if the optimizer was made with a schedule, or the model runs several batches in one call, which
                would all have one rate.
        """
        if not isinstance(self._optimizer.get_config().get("learning_rate"), float):
            raise ValueError(
                "CyclicLR must have an optimizer with a plain learning rate, received one made with a schedule; make "
                "it with a number"
            )
        batches_per_call = getattr(self.model, "steps_per_execution", 1)
        if batches_per_call != 1:
            raise ValueError(
                f"CyclicLR must set a rate before each batch, received a model with steps_per_execution "
                f"{batches_per_call}; compile it with 1, or give the optimizer schedule.as_keras() instead"
            )
        self._optimizer.learning_rate = self.clr()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the batch, and sets the rate of the next."""
        self.trn_iterations += 1
        self.clr_iterations += 1
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        for name, value in {"lr": rate, "iterations": self.trn_iterations, **(logs or {})}.items():
            self.history.setdefault(name, []).append(value)
        self._optimizer.learning_rate = self.clr()

    @property
    def _optimizer(self) -> keras.optimizers.Optimizer:
        # Mixed precision wraps the optimizer that holds the rate.
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    def _make_schedule(self) -> Cyclic:
        whole = isinstance(self.step_size, float) and self.step_size.is_integer()
        step_size = base.checked_length("step_size", int(self.step_size) if whole else self.step_size)
        bounds = self.base_lr, self.max_lr, step_size
        if self.scale_fn is not None:
            # The original's functions are of one number: `lambda x: 1.` is one of them.
            return Cyclic(
                *bounds, scale_fn=np.vectorize(self.scale_fn, otypes=[np.float64]), scale_mode=self.scale_mode
            )
        if self.mode == "exp_range":
            return ExpRange(*bounds, gamma=self.gamma)
        return {"triangular": Triangular, "triangular2": Triangular2}[self.mode](*bounds)
