"""Our schedules against what PyTorch's did at every step; `torch_schedules.md` says how the file was made."""

import json
from pathlib import Path

import numpy as np
import pytest

from clr_loop.schedules import CosineRestarts, ExpRange, OneCycle, Triangular, Triangular2

CASES = json.loads((Path(__file__).parent / "torch_schedules.json").read_text())["cases"]


def ours(scheduler, arguments):
    """The schedule that PyTorch's scheduler with these arguments is."""
    momentum = (arguments["base_momentum"], arguments["max_momentum"]) if "base_momentum" in arguments else None
    if scheduler == "CyclicLR":
        cycle = [arguments[name] for name in ("base_lr", "max_lr", "step_size_up")] + [arguments.get("step_size_down")]
        if arguments["mode"] == "exp_range":
            return ExpRange(*cycle, gamma=arguments["gamma"], momentum=momentum)
        return {"triangular": Triangular, "triangular2": Triangular2}[arguments["mode"]](*cycle, momentum=momentum)
    if scheduler == "OneCycleLR":
        names = {"anneal_strategy": "anneal", **{n: n for n in ("pct_start", "div_factor", "final_div_factor")}}
        options = {ours: arguments[theirs] for theirs, ours in names.items() if theirs in arguments}
        return OneCycle(arguments["max_lr"], arguments["total_steps"], **options, momentum=momentum)
    return CosineRestarts(arguments["eta_min"], 0.1, arguments["T_0"], arguments.get("T_mult", 1))


@pytest.mark.parametrize("name", CASES)
def test_every_rate_and_momentum_is_that_of_pytorch(name):
    case = CASES[name]
    schedule = ours(case["scheduler"], case["arguments"])
    steps = np.arange(len(case["rates"]))
    np.testing.assert_allclose(schedule(steps), case["rates"], rtol=1e-6)
    if "momentums" in case:
        np.testing.assert_allclose(schedule.momentum_at(steps), case["momentums"], rtol=1e-6)
    else:
        assert schedule.momentum_at(steps) is None
