"""Which learning rates should a cycle move between? Sweeps the rate over a few seeds and suggests base_lr and max_lr.

Examples:

    python scripts/range_test.py --model=relu_mlp --batch_size=2000
    python scripts/range_test.py --batch_size=100 --early_stop=none --seeds=5 --output_dir=runs/range_test_100

It prints what the curves suggest and last the command to train with, and writes into --output_dir: range_test.json,
range_test.csv (every step), range_test.png and TensorBoard's events. --epochs is the length of the planned run. The
exit code is 1 if the curves support no bounds.

A sweep of more than two epochs reads its score on a held-out tenth of the training examples, because a model memorizes
what it sees again.
"""

from __future__ import annotations

import contextlib
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from tqdm import tqdm

from clr_loop.commands import cores, loop_flags, model_flags, output_flags, terminal
from clr_loop.commands.setup import Setup
from clr_loop.data import AnyDataset, Examples
from clr_loop.schedules import to_steps

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from clr_loop.loop.loop import Metrics, TrainLoop
    from clr_loop.studies.range_test import Bounds, RangeTest

FLAGS = flags.FLAGS

# These flags say how to sweep and where to write; the others hold for the training, too.
_OF_A_SWEEP = (
    "help", "helpfull", "start_lr", "end_lr", "num_steps", "sweep", "early_stop", "seeds", "output_dir", "overwrite",
    "parallel", "shared_dir",
)  # fmt: skip
# More steps than any picture or reader can take.
_MOST_STEPS = 10_000_000


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    flags.DEFINE_integer("batch_size", 100, "Examples in a step.")
    flags.DEFINE_float("start_lr", 1e-7, "The first rate.")
    flags.DEFINE_float("end_lr", 10.0, "The last rate, unless the sweep stops early.")
    flags.DEFINE_string(
        "num_steps",
        "1000",
        "From the first rate to the last: 1000 or 1000st (steps), 2ep (epochs) or 30% (of --epochs). About 100 steps "
        "for each decade are easy to read.",
    )
    flags.DEFINE_enum("sweep", "exponential", ("exponential", "linear"), "Equal ratios between rates, or differences.")
    flags.DEFINE_string("early_stop", "4", "Stop when the smoothed loss is this many times its best; none: never.")
    output_flags.define_seeds(3, "Sweeps; they differ in initial weights and order of the data")
    cores.define_parallel()
    flags.DEFINE_string("output_dir", "runs/range_test", f"Where to write; {output_flags.EMPTY}, unless --overwrite.")
    for module in (terminal, output_flags, model_flags, loop_flags):
        flags.adopt_module_key_flags(module)
    flags.register_validator("early_stop", _is_number_or_none, message="must be a number such as 4, or none")


def _is_number_or_none(value: str) -> bool:
    with contextlib.suppress(ValueError):
        return value == "none" or float(value) > 0.0
    return False


def run() -> int:
    """Sweep, write what follows and print it; return 1 if the curves support no bounds."""
    loop_flags.check()
    if FLAGS.strategy != "none" and cores.is_parallel():
        raise ValueError("--parallel takes the whole machine for one replica; leave it out, or --strategy.")
    if len(model_flags.momentums()) == 2:
        raise ValueError("--momentum=low,high is cycled by a schedule, and a range test has none; give one number.")
    dataset = model_flags.load_dataset()
    num_steps = to_steps(FLAGS.num_steps, *output_flags.run_length(dataset.num_examples, FLAGS.batch_size), "num_steps")
    if num_steps > _MOST_STEPS:
        raise ValueError(f"--num_steps={FLAGS.num_steps} means {num_steps:,} steps; 1000 make a readable curve.")
    with output_flags.claim(FLAGS.output_dir, "range_test") as output_dir, cores.Workers() as workers:
        strategy = loop_flags.start()
        with terminal.status("making the model and the loop"):
            from clr_loop.runs.settings import loop_settings, threads_of
            from clr_loop.studies import range_test

            swept, held_out = range_test.split(dataset, FLAGS.batch_size, num_steps)
            loop = loop_flags.make_loop(swept, strategy)
        arguments = _arguments(num_steps)
        if cores.is_parallel():
            tests = workers.run(partial(_spread, Setup(__name__, dataset), output_dir, arguments), resume=False)
        else:
            tests = _sweep(loop, dataset, held_out, arguments)
        output_flags.begin(output_dir)
        with terminal.status("drawing"):
            settings = {**model_flags.settings(dataset), **loop_settings(loop), "threads": threads_of(loop)}
            range_test.write(tests, FLAGS.epochs, output_dir, settings, FLAGS.figure_format)
        _, total_steps = output_flags.run_length(dataset.num_examples, FLAGS.batch_size)  # A sweep may hold some out.
        line_of = partial(_train_command, total_steps=total_steps)
        *words, last = range_test.text(tests, FLAGS.epochs, line_of).splitlines()
        terminal.say(f"{terminal.where(output_dir)}\n")
        terminal.note("\n".join(words))
        terminal.say(last)
        return 0 if isinstance(range_test.bounds_or_reason(tests, FLAGS.epochs), range_test.Bounds) else 1


def _train_command(bounds: Bounds, total_steps: int) -> str:
    """Return the command of a run with these bounds that ends at the low of the second cycle."""
    flags_of_both = [*terminal.given_flags(__name__, left_out=_OF_A_SWEEP), *str(bounds).split()]
    missing = [FLAGS[name].serialize() for name in ("model", "batch_size") if not FLAGS[name].present]
    # Of an odd number of steps, the last one begins the third cycle, at its low.
    down = total_steps // 2 - bounds.step_size
    uneven = [f"--step_size_down={down}"] if down != bounds.step_size else []
    return shlex.join([*terminal.program("train"), *missing, *flags_of_both, *uneven])


def _arguments(num_steps: int) -> dict[str, Any]:
    """Return how to sweep, as the flags say."""
    early_stop = None if FLAGS.early_stop == "none" else float(FLAGS.early_stop)
    ends = {"start_lr": FLAGS.start_lr, "end_lr": FLAGS.end_lr}
    return {**ends, "num_steps": num_steps, "sweep": FLAGS.sweep, "early_stop": early_stop}


def _spread(
    setup: Setup, output_dir: Path, arguments: dict[str, Any], executor: Executor | None, resume: bool
) -> list[RangeTest]:
    """Sweep with all seeds side by side."""
    from clr_loop.studies import range_test
    from clr_loop.studies.tasks import Processes

    assert executor is not None
    make_swept = partial(setup.swept, FLAGS.batch_size, arguments["num_steps"])
    processes = Processes(executor, FLAGS.shared_dir)
    with terminal.status(f"sweeping with {len(FLAGS.seeds)} seeds"):
        return range_test.spread_seeds(make_swept, setup.make_model, FLAGS.seeds, processes, output_dir, **arguments)


def _sweep(
    loop: TrainLoop, dataset: AnyDataset, held_out: Examples | None, arguments: dict[str, Any]
) -> list[RangeTest]:
    """Sweep with one seed after another."""
    from clr_loop.studies import range_test

    with tqdm(total=arguments["num_steps"], unit="step", disable=None, leave=False, dynamic_ncols=True) as bar:

        def start(seed: int) -> None:
            bar.reset()
            bar.set_description(f"seed {seed}")
            if bar.disable:  # There is no terminal, so a log gets a line.
                terminal.say(f"sweeping with seed {seed}")

        def move(steps_done: int, metrics: Metrics) -> None:
            bar.update(steps_done - bar.n)

        make_model = partial(model_flags.make_model, dataset)
        return range_test.run_seeds(
            loop, make_model, FLAGS.seeds, on_start=start, held_out=held_out, on_block=move, **arguments
        )


main = terminal.command(run, define_flags)
