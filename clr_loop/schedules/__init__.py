"""Learning-rate schedules: step → rate. They need only NumPy; `for_keras` brings them to Keras."""

from clr_loop.schedules.base import Schedule
from clr_loop.schedules.cycles import CosineRestarts, Cyclic, ExpRange, Triangular, Triangular2, register_scale_fn
from clr_loop.schedules.describe import Description, describe
from clr_loop.schedules.formulas import (
    Constant,
    CosineDecay,
    ExponentialDecay,
    ExponentialRamp,
    Joined,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
    from_config,
    join,
)
from clr_loop.schedules.lengths import to_steps

__all__ = [
    "Constant", "CosineDecay", "CosineRestarts", "Cyclic", "Description", "ExpRange", "ExponentialDecay",
    "ExponentialRamp", "Joined", "LinearDecay", "LinearRamp", "OneCycle", "OneTriangle", "Schedule", "Triangular",
    "Triangular2", "describe", "from_config", "join", "register_scale_fn", "to_steps",
]  # fmt: skip
