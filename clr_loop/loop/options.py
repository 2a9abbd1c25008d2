"""How one update is made, as the user says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clr_loop.options import option, options

Average = float | Literal["swa"]


@options
@dataclass(frozen=True)
class StepOptions:
    """How one update is made."""

    jit_compile: bool | Literal["auto"] = option(
        "auto",
        "Whether to compile with XLA. auto decides by the model and the device: not for convolutions and random "
        "numbers on a CPU.",
    )
    clip_norm: float | None = option(
        None,
        "Gradients with a larger global norm are scaled down to it. Without it they stay.",
        above=0,
        below=math.inf,
    )
    accumulate: int = option(
        1,
        "Each batch is split into this many parts, which are computed one after another and summed into one update. "
        "It saves memory. Layers that look at a whole batch (batch-norm) see one part.",
        low=1,
    )
    skip_non_finite: bool = option(
        False,
        "Whether to skip a batch whose loss or gradient is NaN or infinite, in place of stopping the run. A skipped "
        "batch changes no variable and counts no step, so the next batch gets its learning rate.",
    )
    halve_batches: bool = option(
        True,
        "Whether a batch of 256 or more may be computed in two halves side by side, where a CPU runs an XLA program "
        "and the model's structure shows that the halves add up to the whole batch. It is faster, and its rounding "
        "differs.",
    )
    average: Average | None = option(
        None,
        "An average of the weights beside the training. A number is the momentum of an exponential average over all "
        "steps, as Keras' ema_momentum; 0.999 is usual. swa is the mean of the weights at the cycles' lows, which "
        "TrainLoop.add_to_average adds to.",
        above=0,
        below=1,
    )
    rate_multipliers: Mapping[str, float] = option(
        {},
        "A factor for each regular expression. A variable whose path has a match (re.search) learns at the rate of "
        "the step times the factor of the first such expression; its weight decay goes with that rate. 0 freezes it.",
        low=0,
        below=math.inf,
    )
    transforms: Sequence[Callable[..., Any]] = option(
        (),
        "Transformations of the step, the first one innermost. Each takes a function (batch, total) → Result and "
        "returns one of the same kind. It sees gradients without a loss scale, summed over parts and replicas, before "
        "the clip. It must be a pure function of them; state belongs in an optimizer.",
        has_flag=False,
    )
    optimizers: Sequence[str] | None = option(
        None,
        "Attributes of the model whose optimizers get the rate, for a model with a train_step of its own. None means "
        "every optimizer found there.",
        has_flag=False,
    )
