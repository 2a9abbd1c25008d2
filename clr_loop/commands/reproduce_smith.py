"""Do cyclical rates need fewer steps for the same accuracy? Smith's own experiment, CIFAR-10 with Caffe's network.

Runs the policies of arXiv 1506.01186, table 1 (with another --optimizer those of table 3), each with its own length and
bounds, several seeds each, and prints the paper's figures beside these. The full length takes hours; --scale=0.1
shortens every policy alike. Stopped, the same command with --resume goes on.

Examples:

    python scripts/reproduce_smith.py --data_dir=cifar-10-batches-py --scale=0.1 --seeds=3
    python scripts/reproduce_smith.py --data_dir=cifar-10-batches-py --optimizer=adam --output_dir=runs/smith_adam

It writes into --output_dir: report.md, smith.json, smith.png, and a folder for each run.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clr_loop import data
from clr_loop.commands import cores, output_flags, terminal
from clr_loop.runs import files as run_files
from clr_loop.runs.lines import RunCount

if TYPE_CHECKING:
    from clr_loop.studies.arms import ArmRun
    from clr_loop.studies.smith import Policy

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    flags.DEFINE_string("dataset", "cifar10", "cifar10, or the path of an .npz file of images; the mean is subtracted.")
    flags.DEFINE_string(
        "data_dir", None, "Folder cifar-10-batches-py or -bin, or an .npz file; not given: Keras' download."
    )
    flags.DEFINE_enum("optimizer", "sgd", ("sgd", "nesterov", "adam", "rmsprop"), "sgd: table 1; the others: table 3.")
    flags.DEFINE_integer("batch_size", 100, "Examples in a step.", lower_bound=1)
    output_flags.define_seeds(1, "Runs of each policy; they differ in initial weights and order of the data")
    flags.declare_key_flag("seeds")
    flags.declare_key_flag("threads")
    flags.DEFINE_float(
        "scale",
        1.0,
        "What all lengths are multiplied by; runs are rounded to epochs.",
        lower_bound=0.001,
        upper_bound=1.0,
    )
    flags.DEFINE_float("holdout", None, "Share of the training examples that validate in place of the test examples.")
    flags.DEFINE_string(
        "output_dir", "runs/smith", f"Where to write; {output_flags.EMPTY}, unless --resume or --overwrite."
    )
    flags.DEFINE_bool("resume", False, "Go on with what is in --output_dir, from the last checkpoint.")
    flags.declare_key_flag("overwrite")
    flags.declare_key_flag("figure_format")
    flags.adopt_module_key_flags(terminal)


def run() -> None:
    """Run all policies, write the report and print it."""
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, subtract_mean=True)
    assert isinstance(dataset, data.Dataset)  # No mean is subtracted from a stream.
    if FLAGS.holdout is not None:
        dataset = data.hold_out(dataset, FLAGS.holdout)
    output_flags.run_length(dataset.num_examples, FLAGS.batch_size)  # Raises if the batch is too large.
    with output_flags.claim(FLAGS.output_dir, "smith", FLAGS.resume) as output_dir:
        for config in output_dir.glob(f"*/*/{run_files.CONFIG}") if FLAGS.resume else ():
            cores.use_saved_threads(config)
        terminal.start_tensorflow(cores.use_threads)
        from clr_loop.studies import smith

        # The network was made for such inputs.
        warnings.filterwarnings("ignore", message="The float inputs lie between", category=UserWarning)
        output_flags.begin(output_dir)
        policies = smith.policies(FLAGS.optimizer, FLAGS.scale)
        runs = _run_all(dataset, policies, output_dir)
        examples = "test" if FLAGS.holdout is None else "held-out"
        share = "all" if FLAGS.scale == 1 else f"{FLAGS.scale:g}"
        title = (
            f"{Path(dataset.name).stem}, {FLAGS.optimizer}, batch {FLAGS.batch_size}, {share} of the paper's steps, "
            f"validated on {examples} examples, {len(FLAGS.seeds)} seed{'s' * (len(FLAGS.seeds) > 1)}"
        )
        report = smith.write(runs, policies, title, output_dir, FLAGS.figure_format)
        terminal.say_markdown(f"\n{report}")
        terminal.say(terminal.where(output_dir))


def _run_all(dataset: data.Dataset, policies: Sequence[Policy], output_dir: Path) -> list[ArmRun]:
    """Run every policy with every seed, and say what each run gave."""
    from clr_loop.data.models import CAFFE_RATE_MULTIPLIERS, build_model
    from clr_loop.loop.options import StepOptions
    from clr_loop.runs.options import RunOptions
    from clr_loop.runs.progress import ProgressBar
    from clr_loop.studies import smith
    from clr_loop.studies.arms import Arm
    from clr_loop.studies.comparison.plan import Plan
    from clr_loop.studies.comparison.runner import run_arms

    count = RunCount(len(policies) * len(FLAGS.seeds))

    def say_run(run: ArmRun) -> None:
        accuracy = run.result.final["val_accuracy"]
        seconds = f"{run.result.train_seconds:.0f} s"
        place = count.end((run.arm, run.seed))
        terminal.note(f"{place}: {run.arm.schedule_name}, seed {run.seed}: {accuracy:.2%}, {seconds}")

    def show(arm: Arm, seed: int) -> list[ProgressBar]:
        return [ProgressBar(f"{count.start((arm, seed))}: {arm.schedule_name}, seed {seed}")]

    steps_per_epoch, _ = output_flags.run_length(dataset.num_examples, FLAGS.batch_size)
    epochs = {policy.name: max(1, round(policy.num_steps * FLAGS.scale / steps_per_epoch)) for policy in policies}
    arms = [Arm(FLAGS.batch_size, policy.name, policy.schedule) for policy in policies]
    every = round(1000 * FLAGS.scale)  # As often as Caffe's solver looks at the test set.
    options = RunOptions(
        settings={"model": "caffe_cifar10", "scale": FLAGS.scale, "holdout": FLAGS.holdout},
        checkpoint_every=steps_per_epoch,
        keep_checkpoints=1,
        validate_every=every if every < steps_per_epoch else 0,
    )
    return run_arms(
        dataset,
        lambda seed: build_model("caffe_cifar10", dataset, seed, smith.make_optimizer(FLAGS.optimizer)),
        Plan(arms, FLAGS.seeds, epochs),
        output_dir,
        resume=FLAGS.resume,
        step_options=StepOptions(rate_multipliers=CAFFE_RATE_MULTIPLIERS),
        run_options=options,
        make_callbacks=show,
        on_run=say_run,
    )


main = terminal.command(run, define_flags)
