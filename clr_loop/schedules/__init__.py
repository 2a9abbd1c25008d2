"""Learning-rate schedules: step → rate, in NumPy alone."""

from clr_loop.schedules.formulas import (
    SCHEDULES,
    Constant,
    CosineRestarts,
    Cyclic,
    ExponentialRamp,
    ExpRange,
    Joined,
    LinearRamp,
    OneCycle,
    Schedule,
    Triangular,
    Triangular2,
    from_config,
    join,
    register_scale_fn,
)

__all__ = [
    "SCHEDULES", "Constant", "CosineRestarts", "Cyclic", "ExpRange", "ExponentialRamp", "Joined", "LinearRamp",
    "OneCycle", "Schedule", "Triangular", "Triangular2", "from_config", "join", "register_scale_fn",
]  # fmt: skip
