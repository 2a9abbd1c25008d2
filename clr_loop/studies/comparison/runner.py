"""Runs every arm of a comparison with every seed. `effects` works out what follows."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_types
from clr_loop.data import AnyDataset, Dataset, Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.make_loop import FeedName, choose_feed, make_loop
from clr_loop.loop.options import StepOptions
from clr_loop.runs import files as run_files
from clr_loop.runs.fit import NonFiniteError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.runs.result import TrainingResult
from clr_loop.runs.settings import in_words, run_settings
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.seeds import MakeModel, initial_state


@checked_types
def run_arms(
    dataset: AnyDataset,
    make_model: MakeModel,
    plan: Plan,
    output_dir: Path,
    *,
    resume: bool = False,
    on_diverged: Callable[[Arm, int], None] | None = None,
    feed: FeedName = "auto",
    step_options: StepOptions | None = None,
    run_options: RunOptions | None = None,
    make_callbacks: Callable[[Arm, int], Sequence[keras.callbacks.Callback]] = lambda arm, seed: (),
    on_run: Callable[[ArmRun], None] = lambda run: None,
) -> list[ArmRun]:
    """Run every arm with every seed, for `compare`, and return the runs by seed, in the order of the plan's arms.

    The program of a batch size is compiled once, and each of its runs starts from the state that a fresh loop of its
    seed would have. Seeds are the outer loop, and each draws the order of its arms, so a machine that slows down
    affects all arms alike.

    Args:
        dataset: what to train and validate on.
        make_model: seed → a fresh compiled model.
        plan: what to run.
        output_dir: an existing directory; the files of a run go to `<arm>/seed_<n>` in it.
        resume: whether to take the results of runs that are finished there instead of running them again. A run that
            was interrupted continues from its newest checkpoint, or starts again without one.
        on_diverged: called with the arm and the seed of a run that diverged, which is left out; None lets it raise.
        feed: see `choose_feed`.
        step_options, run_options: for every loop and every run; run_options without checkpoint_every saves none,
            and no models.
        make_callbacks: (arm, seed) → the Keras callbacks of that run.
        on_run: called with each run when it is finished.

    Raises:
        ValueError: if the runs will not have the plan's measure; if a finished run has other settings.
    """
    options = _options(run_options or RunOptions(), dataset)
    loops = _make_loops(dataset, make_model, plan, feed, step_options)
    fresh = {size: loop.snapshot() for size, loop in loops.items()}
    if resume:
        _check_runs(plan, loops, options, output_dir)
    runs: list[ArmRun] = []
    for seed in plan.seeds:
        initial = initial_state(make_model, seed)
        for arm in plan.order(seed):
            loop, run_dir = loops[arm.batch_size], output_dir / arm.directory / f"seed_{seed}"
            loop.restore(dataclasses.replace(fresh[arm.batch_size], **initial))
            of_arm, epochs = _options_of(arm, options), plan.epochs_of(arm)
            train = partial(fit, loop, arm.schedule, dataset.validation, epochs=epochs, options=of_arm, verbose=0)
            result = _finished(run_dir) if resume else None
            try:
                if result is None:
                    going_on, callbacks = resume and _has_checkpoint(run_dir), make_callbacks(arm, seed)
                    result = train(
                        options=_options_of(arm, options), run_dir=run_dir, resume=going_on, callbacks=callbacks
                    )
            except NonFiniteError:
                if on_diverged is None:
                    raise
                on_diverged(arm, seed)
                continue
            runs.append(ArmRun(arm, seed, result))
            on_run(runs[-1])
    return sorted(runs, key=lambda run: (plan.seeds.index(run.seed), plan.arms.index(run.arm)))


def _options(options: RunOptions, dataset: AnyDataset) -> RunOptions:
    """Return the options of every run: these, without saved models, and with the name and the digest of the data."""
    digest = options.settings.get("dataset_sha256") or dataset.sha256()
    settings = {"dataset": dataset.name, **options.settings, "dataset_sha256": digest}
    every = options.checkpoint_every or 0
    return dataclasses.replace(options, settings=settings, checkpoint_every=every, save_models=False)


def epoch_seconds(loop: TrainLoop) -> float:
    """Return the seconds of one epoch, after one that is not timed; everything is then put back."""
    before, rates = loop.snapshot(), np.zeros(loop.steps_per_epoch)
    try:
        loop.run(rates)
        started = time.perf_counter()
        loop.run(rates)
        return time.perf_counter() - started
    finally:
        loop.restore(before)


def _make_loops(
    dataset: AnyDataset, make_model: MakeModel, plan: Plan, feed: FeedName, options: StepOptions | None
) -> dict[int, TrainLoop]:
    """Make a loop for each batch size; all share one copy of the arrays, on the device if they fit there."""
    if isinstance(dataset, Dataset):
        is_resident = choose_feed(dataset, feed, tf.distribute.get_strategy())[0] == "resident"
        with contextlib.nullcontext() if is_resident else tf.device("CPU"):
            tensors = keras.tree.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), dataset.train)
        dataset = dataclasses.replace(dataset, train=Examples(*tensors))
    sizes = dict.fromkeys(arm.batch_size for arm in plan.arms)
    loops = {size: make_loop(make_model(plan.seeds[0]), dataset, size, feed=feed, options=options) for size in sizes}
    names = next(iter(loops.values())).metric_names
    validated = () if dataset.validation is None else tuple(f"val_{name}" for name in names)
    plan.measure.check((*names, *validated))
    return loops


def _check_runs(plan: Plan, loops: Mapping[int, TrainLoop], options: RunOptions, output_dir: Path) -> None:
    """Refuse, before any run is trained, a plan that differs from a run that is there. Data are known by their digest.

    Raises:
        ValueError: if a run that is finished, or has a checkpoint, has other settings.
    """
    for arm in plan.arms:
        loop, epochs = loops[arm.batch_size], plan.epochs_of(arm)
        expected = run_settings(loop, arm.schedule, epochs, _options_of(arm, options).to_compare())
        for seed in plan.seeds:
            run_dir = output_dir / arm.directory / f"seed_{seed}"
            if not (_has_checkpoint(run_dir) or (run_dir / run_files.RESULT).is_file()):
                continue
            saved = run_files.read_json(run_dir / run_files.CONFIG, run_files.CONFIG_SHAPE)
            same = {"validation": None, "seed": seed}
            words = list(in_words({**saved, **same}, {**expected, **same}).values())
            if saved["epochs"] != epochs:
                words.append(f"epochs {saved['epochs']}, now {epochs}")
            if words:
                what = f"The run in {run_dir} has other settings: {'; '.join(words)}"
                raise ValueError(f"{what}. Use the same settings, or another directory.")


def _finished(run_dir: Path) -> TrainingResult | None:
    """Return the result in a run directory; None if there is none.

    It then removes what is left of a run that was interrupted before its first checkpoint.
    """
    result = read_result(run_dir)
    if result is None and not _has_checkpoint(run_dir):
        with run_files.claim(run_dir, resume=True) as directory:
            run_files.clear(directory)
    return result


def _options_of(arm: Arm, options: RunOptions) -> RunOptions:
    return dataclasses.replace(options, settings={"arm": arm.label, **options.settings})


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / run_files.CHECKPOINTS).glob("step_*"))
