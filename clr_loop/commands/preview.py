"""Shows what a schedule will do in a run, without training and without TensorFlow.

Example:

    python scripts/preview.py --schedule=triangular2 --base_lr=0.001 --max_lr=0.1 --step_size=25% --batch_size=2000

It prints what train.py would print of the schedule, and draws it to preview.png in --output_dir. A second look with
other flags replaces the picture; nothing else in the folder is touched.
"""

import numpy as np
from absl import flags
from numpy.typing import NDArray

from clr_loop.commands import model_flags, output_flags, schedule_flags, terminal
from clr_loop.runs import files as run_files
from clr_loop.schedules import describe
from clr_loop.studies.pictures.canvas import save
from clr_loop.studies.pictures.runs import schedule_figure

FLAGS = flags.FLAGS

# A picture cannot show more points.
_MOST_POINTS = 10_000


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    schedule_flags.define_schedule()
    flags.DEFINE_integer("batch_size", 100, "Examples in a step.")
    flags.DEFINE_integer("num_examples", 60000, "Examples in an epoch.")
    flags.DEFINE_string("output_dir", "runs/preview", "Where to draw preview.png.")
    flags.declare_key_flag("epochs")
    flags.declare_key_flag("figure_format")
    for module in (terminal, schedule_flags):
        flags.adopt_module_key_flags(module)


def run() -> None:
    """Describe and draw one schedule."""
    schedule_flags.check([FLAGS.schedule])
    if len(model_flags.momentums()) == 1:
        raise ValueError(f"--momentum={FLAGS.momentum[0]} is the optimizer's, and a preview has none; give low,high.")
    steps_per_epoch, total_steps = output_flags.run_length(FLAGS.num_examples, FLAGS.batch_size)
    schedule = schedule_flags.make(FLAGS.schedule, steps_per_epoch, total_steps)
    description = describe(schedule, total_steps, steps_per_epoch)

    steps = np.arange(total_steps) if total_steps <= _MOST_POINTS else _sample(total_steps)
    rates, momentums = schedule(steps), schedule.momentum_at(steps)
    title = f"{FLAGS.schedule}, batch {FLAGS.batch_size}"
    figure = schedule_figure(steps, rates, momentums, steps_per_epoch, title, description.warnings)
    picture = run_files.make(FLAGS.output_dir) / "preview.png"
    save(figure, picture, FLAGS.figure_format)
    terminal.note(f"{description}\npicture: {picture}")


def _sample(total_steps: int) -> NDArray[np.int64]:
    """Return steps all over a run, at uneven distances: even ones would draw other cycles than there are."""
    even = np.linspace(0, total_steps, _MOST_POINTS, endpoint=False)
    uneven = even + np.random.default_rng(0).uniform(0, total_steps / _MOST_POINTS, _MOST_POINTS)
    return np.unique([0, *uneven.astype(np.int64), total_steps - 1])


main = terminal.command(run, define_flags)
