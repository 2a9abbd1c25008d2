"""Trains a model with one learning-rate schedule and writes what happened.

Examples:

    python scripts/train.py --schedule=triangular --base_lr=0.001 --max_lr=0.1 --step_size=50% --batch_size=2000
    python scripts/train.py --model=clr_loop.data.examples:regression_model --dataset=clr_loop.data.examples:regression
    python scripts/train.py --model=clr_loop.data.examples:text_model --dataset=clr_loop.data.examples:text

It writes into --run_dir: config.json, history.csv (every step), epochs.csv, result.json, curves.png, final.keras and
best.keras, TensorBoard's events and checkpoints. After Ctrl-C, SIGTERM or worse, the same command with --resume goes
on, to the same last bit.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop.commands import cores, loop_flags, model_flags, option_flags, output_flags, schedule_flags, terminal
from clr_loop.data import AnyDataset, Dataset, hold_out
from clr_loop.options import names_of
from clr_loop.runs import files as run_files
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import to_steps

if TYPE_CHECKING:
    from clr_loop.runs.result import TrainingResult

FLAGS = flags.FLAGS

# These say what this command does with the run; the others say what the run is, and are saved with it.
OF_COMMAND = ("help", "run_dir", "resume", "overwrite", *names_of(RunOptions, "once"))
MAY_DIFFER = ("data_dir", "epochs", "feed", "strategy", "logical_devices", *names_of(RunOptions, "free"))


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    schedule_flags.define_schedule()
    flags.DEFINE_integer("batch_size", 100, "Examples in a step.")
    flags.DEFINE_integer("seed", 0, "Of the initial weights and of the order of the data.")
    flags.DEFINE_string(
        "run_dir", "runs/train", f"Where to write; {output_flags.EMPTY}, unless --resume or --overwrite."
    )
    flags.DEFINE_bool("resume", False, "Go on with the run in --run_dir, from its newest good checkpoint.")
    flags.DEFINE_float(
        "holdout",
        None,
        "Share of the training examples that validate in place of the test examples, which are then looked at once, at "
        "the end.",
    )
    lengths = ("checkpoint_every", "validate_every", "weight_norm_every")
    option_flags.define(RunOptions, lengths=lengths, units=f"Write {schedule_flags.UNITS}, or 0 or never.")
    for module in (terminal, output_flags, model_flags, loop_flags, schedule_flags):
        flags.adopt_module_key_flags(module)


def run() -> int | None:
    """Train once, as the flags say."""
    for name in ("on_change", "resume_from"):
        if FLAGS[name].present and not FLAGS.resume:
            given = f"--{name}={FLAGS[name].value}"
            raise ValueError(f"{given} says how to go on with a run; add --resume or leave it out.")
    if FLAGS.on_change == "keep":
        terminal.use_saved_flags(__name__, FLAGS.run_dir, OF_COMMAND, MAY_DIFFER)
    if FLAGS.resume and not FLAGS["epochs"].present:
        output_flags.use_saved_epochs(FLAGS.run_dir)
    if FLAGS.resume:
        cores.use_saved_threads(run_files.expanded(FLAGS.run_dir) / run_files.CONFIG)
    schedule_flags.check([FLAGS.schedule])
    loop_flags.check()
    dataset, test = model_flags.load_dataset(), None
    if FLAGS.holdout is not None:
        if not isinstance(dataset, Dataset):
            raise ValueError(
                "--holdout takes a part of the training arrays, and these data are streamed; leave it out."
            )
        dataset, test = hold_out(dataset, FLAGS.holdout), dataset.validation
    length = output_flags.run_length(dataset.num_examples, FLAGS.batch_size)
    schedule = schedule_flags.make(FLAGS.schedule, *length)
    options = _options(dataset, *length)
    with loop_flags.claim(FLAGS.run_dir, FLAGS.resume) as run_dir:
        strategy = loop_flags.start()
        with terminal.status("making the model and the loop"):
            from clr_loop.runs.fit import fit

            loop = loop_flags.make_loop(dataset, strategy, FLAGS.seed)
        return _train(partial(fit, loop, schedule, dataset.validation, test=test, options=options), run_dir)


def _options(dataset: AnyDataset, steps_per_epoch: int, total_steps: int) -> RunOptions:
    """Return how the run is kept, resumed and observed, as the flags say."""
    values = option_flags.values(RunOptions)
    for name in ("checkpoint_every", "validate_every", "weight_norm_every"):
        if values[name] is not None:
            is_never = values[name] in ("never", "0")
            values[name] = 0 if is_never else to_steps(values[name], steps_per_epoch, total_steps, name)
    settings = {**model_flags.settings(dataset), "command": terminal.given_flags(__name__, OF_COMMAND)}
    return RunOptions(settings=settings, **values)


def _train(start: Callable[..., TrainingResult], run_dir: Path) -> int | None:
    """Train, write the curves, and say how it ended."""
    from clr_loop.commands.callbacks import SignalWatch
    from clr_loop.runs import events
    from clr_loop.runs.fit import TrainingInterruptedError
    from clr_loop.runs.result import Monitor

    signals = SignalWatch()
    try:
        result = start(
            epochs=FLAGS.epochs,
            callbacks=[signals],
            run_dir=run_dir,
            resume=FLAGS.resume,
            verbose=1 if sys.stderr.isatty() else 2,
        )
    except TrainingInterruptedError as stopped:
        goes_on = f"resume:  {terminal.resume_command()}" if stopped.checkpoint else "no checkpoint was asked for"
        if signals.received is None:
            raise InterruptedError(f"Another worker was told to stop, so all {stopped}; {goes_on}") from stopped
        terminal.say(f"{stopped}\n{goes_on}")
        return 128 + signals.received
    with terminal.status("drawing"):
        from clr_loop.studies.pictures.canvas import save, to_png
        from clr_loop.studies.pictures.runs import training_picture  # It brings Matplotlib, which nothing needs before.

        curves = training_picture(result, Monitor(FLAGS.monitor, FLAGS.mode))
        save(curves.together(), run_dir / "curves.png", FLAGS.figure_format)
        events.write_pictures(run_dir, {f"curves/{name}": to_png(figure) for name, figure in curves.alone().items()})
    metrics = ", ".join(f"{name} {value:#.4g}" for name, value in result.final.items())
    skipped = f"; {result.num_skipped} updates skipped" if result.num_skipped else ""
    terminal.note(
        f"{metrics}; trained {result.train_seconds:.2f} s ({result.examples_per_second:,.0f} examples/s) after "
        f"compiling {result.compile_seconds:.2f} s{skipped}"
    )
    if (run_dir / "best.keras").is_file():
        terminal.note(f"best.keras: {_best_epoch(result)}")
    for name, values in result.test.items():
        terminal.say(f"test, {name} model: {', '.join(f'{metric} {value:#.4g}' for metric, value in values.items())}")
    if FLAGS.snapshots:
        _say_snapshots(run_dir, result.settings)
    if (FLAGS.patience or FLAGS.restore_best) and not result.test:
        terminal.note(
            "note: the epoch was chosen on the examples that it is reported on; --holdout=0.1 chooses on others"
        )
    terminal.say(terminal.where(run_dir))
    return None


def _best_epoch(result: TrainingResult) -> str:
    """Return which epoch is the best and what it is rated by, in words."""
    from clr_loop.runs.result import Best, Monitor

    best = Best(Monitor(FLAGS.monitor, FLAGS.mode))
    record = [record for record in result.epochs if best.is_better(record.metrics)][-1]
    names = ("val_accuracy", "val_loss") if FLAGS.monitor is None else (FLAGS.monitor,)
    name = next(name for name in names if name in record.metrics)
    return f"epoch {record.epoch} of {len(result.epochs)}, {name} {record.metrics[name]:#.4g}"


def _say_snapshots(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Print what each snapshot and each ensemble gave, and draw it."""
    from clr_loop.studies.pictures.canvas import save
    from clr_loop.studies.pictures.runs import snapshots_picture
    from clr_loop.studies.report.tables import table_of

    with open(run_dir / "snapshots.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    picture = snapshots_picture([{name: float(value) for name, value in row.items()} for row in rows], settings)
    save(picture.together(), run_dir / "snapshots.png", FLAGS.figure_format)
    shown = [{n: v if n in ("cycle", "ensemble_of") else f"{float(v):#.4g}" for n, v in row.items()} for row in rows]
    terminal.say(f"\n{table_of(shown)}\n")


main = terminal.command(run, define_flags)
