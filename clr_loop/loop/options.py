"""How one update is made, as the user says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.loop.transforms.averages import Average


@checked_types
@dataclass(frozen=True)
class StepOptions:
    """How one update is made.

    Attributes:
        jit_compile: Whether to compile with XLA. "auto" decides by the model and the device; see `choose.choose_xla`.
        clip_norm: float above 0. Gradients with a larger global norm are scaled down to it. None leaves them alone.
        accumulate: int, at least 1. Each batch is split into this many parts, which are computed one after another and
            summed into one update. It saves memory. Layers that look at a whole batch (batch-norm) see one part.
        skip_non_finite: Whether to skip a batch whose loss or a gradient is not finite. A skipped batch changes no
            variable and counts no step, so the next batch gets its learning rate.
        halve_batches: Whether a batch of 256 or more may be computed in two halves side by side, where a CPU runs an
            XLA program and the model's structure shows that the halves add up to the whole batch. It is faster, and
            its rounding differs.
        average: An average of the weights beside the training, or None; see `TrainLoop.averaged`. A float above 0 and
            below 1 is the momentum of an exponential average over all steps, as Keras' `ema_momentum`. "swa" is the
            mean of the weights at the moments at which `TrainLoop.add_to_average` is called.
        rate_multipliers: regex → factor, at least 0. A variable whose path has a match (`re.search`) learns at the rate
            of the step times the factor of the first such regex; its weight decay goes with that rate. 0 freezes it.
        transforms: Transformations of the step, the first one innermost. Each takes a function (batch, total) →
            `Result` and returns one of the same kind. It sees gradients without a loss scale, summed over parts and
            replicas, before the clip. It must be a pure function of them; state belongs in an optimizer.
        optimizers: Attributes of the model whose optimizers get the rate, for a model with a `train_step` of its own.
            None means every optimizer found there.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if accumulate is not a whole number.
    """

    jit_compile: bool | Literal["auto"] = "auto"
    clip_norm: float | None = None
    accumulate: int = 1
    skip_non_finite: bool = False
    halve_batches: bool = True
    average: Average | None = None
    rate_multipliers: Mapping[str, float] = field(default_factory=dict)
    transforms: Sequence[Callable[..., Any]] = ()
    optimizers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.jit_compile not in (True, False, "auto"):
            raise ValueError(f'jit_compile is {self.jit_compile!r}; choose True, False or "auto".')
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be a finite number above 0, and 1 is usual.")
        checked_whole("accumulate", self.accumulate)
        if isinstance(self.average, float) and not 0.0 < self.average < 1.0:
            raise ValueError(f"average is {self.average}; the momentum of an average is above 0 and below 1, as 0.999.")
        for regex, factor in self.rate_multipliers.items():
            if not 0.0 <= factor < math.inf:
                raise ValueError(f"The rate multiplier of {regex!r} is {factor}; it must be finite and at least 0.")
