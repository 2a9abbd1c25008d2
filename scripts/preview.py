"""Shows what a schedule will do in a run, without training and without TensorFlow.

Example:

    python scripts/preview.py --schedule=triangular2 --base_lr=0.001 --max_lr=0.1 --step_size=25% --batch_size=2000

prints what train.py would print of the schedule before it trains, and draws it to preview.png in --output_dir. A second
look at other flags replaces the picture; nothing else in the folder is touched.
"""

import numpy as np
from absl import flags

from clr_loop.runs import files as run_files
from clr_loop.studies import plots
from shared import schedule_flags
from shared import terminal as command_line

FLAGS = flags.FLAGS

flags.DEFINE_enum("schedule", "triangular", list(schedule_flags.SCHEDULES), "How the learning rate goes.")
flags.DEFINE_integer("batch_size", 100, "Examples per step.")
flags.DEFINE_integer("num_examples", 60000, "Examples in an epoch.")
flags.DEFINE_string("output_dir", "runs/preview", "Where to draw preview.png.")
flags.declare_key_flag("epochs")
flags.adopt_module_key_flags(schedule_flags)


def main() -> None:
    """Describes and draws one schedule."""
    schedule_flags.check([FLAGS.schedule])
    steps_per_epoch, total_steps = command_line.run_length(FLAGS.num_examples, FLAGS.batch_size)
    schedule = schedule_flags.make(FLAGS.schedule, steps_per_epoch, total_steps)
    description = schedule.describe(total_steps, steps_per_epoch)
    # Of a long run so many points as a picture can show; of a short one every step.
    steps = np.unique(np.linspace(0, total_steps - 1, 10_000).round().astype(np.int64))
    figure = plots.schedule(
        steps,
        schedule(steps),
        schedule.momentum_at(steps),
        steps_per_epoch,
        title=f"{FLAGS.schedule}, batch {FLAGS.batch_size}",
        notes=description.warnings,
    )
    picture = run_files.make(FLAGS.output_dir) / "preview.png"
    figure.savefig(picture)
    print(f"{description}\npicture: {picture}")


if __name__ == "__main__":
    command_line.run(main)
