"""Shows what a schedule will do in a run, without training and without TensorFlow.

Example:

    python scripts/preview.py --schedule=triangular2 --base_lr=0.001 --max_lr=0.1 --step_size=25% --batch_size=2000

It prints what train.py would print of the schedule, and draws it to preview.png in --output_dir. A second look with
other flags replaces the picture; nothing else in the folder is touched.
"""

from absl import flags

from clr_loop.commands import model_flags, output_flags, schedule_flags, terminal
from clr_loop.runs import files as run_files
from clr_loop.schedules import describe
from clr_loop.studies.pictures.canvas import save
from clr_loop.studies.pictures.runs import schedule_picture

FLAGS = flags.FLAGS


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

    title = f"{FLAGS.schedule}, batch {FLAGS.batch_size}"
    picture = schedule_picture(schedule, total_steps, steps_per_epoch, title, description.warnings)
    path = run_files.make(FLAGS.output_dir) / "preview.png"
    save(picture.together(), path, FLAGS.figure_format)
    terminal.note(f"{description}\npicture: {path}")


main = terminal.command(run, define_flags)
