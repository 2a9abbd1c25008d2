"""Arrays → TensorBoard events, written in bulk between blocks and never from inside a step.

One event carries all values of a step. TensorBoard shows a run directory as one run, because some of its pages select
none of more than 40 at first. They list the tags by the alphabet, so what a reader looks for first comes first:

    train/…          learning_rate, loss and the metrics at every step
    validation/…     loss and the metrics at every step after which the model was validated
    wall_time/…      epoch_seconds at every epoch's last step
    when_finished/…  the final values, for the HParams page, which has the hyperparameters, too

Keras writes two runs, train and validation, so that a chart shows both. Here Custom Scalars has these charts. The
settings are there as text.

What a comparison adds to its runs is in `studies.report.tensorboard`. The HParams page takes its columns from the first
list of columns that it finds in any run. So a run has none, and the page shows what its runs have; the report of a
comparison lists what differs between its runs.

The events are TensorBoard's own messages in TensorFlow's record files. TensorBoard's `EventFileWriter` writes the same
files; it computes their checksums in Python, though, and takes 11 ms for 600 steps where this takes 2.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams import api_pb2, summary
from tensorboard.plugins.text import summary_v2 as text

from clr_loop.runs.files import EVENTS_SUFFIX, changed, place_of

HYPERPARAMETERS = (
    "arm", "schedule", "batch_size", "seed", "model", "optimizer", "highest_rate", "base_lr", "step_size",
    "step_size_down", "gamma", "total_steps", "pct_start", "first_cycle_steps", "decay_steps", "decay_rate", "momentum",
    "epochs", "dataset",
)  # fmt: skip
"""The settings that the HParams page shows, where a run has them. Every schedule has a highest rate."""

# The trials of a tuning count their seeds down from the last one.
_TRIAL_SEEDS = range(2**32 - 1000, 2**32)

FINAL = "when_finished"
"""The group of tags for the HParams page's columns."""


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise Python's own kind of error in place of TensorFlow's, for a disk that is full or gone."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(f"TensorBoard's events could not be written ({error.message.splitlines()[0]}).") from error


class SummaryWriter:
    """Writes one run's events. A context manager: leaving it marks the run as finished or failed.

    Args:
        run_dir: the run directory; new files are made in it at once.
        settings: JSON types. All are shown as text, and those in `HYPERPARAMETERS` on the HParams page, too. None where
            a run goes on and has them already.

    Raises:
        OSError: here and from every method, if the events cannot be written.
    """

    @_os_errors()
    def __init__(self, run_dir: Path, settings: Mapping[str, Any] | None) -> None:
        self._file = _EventFile(run_dir)
        if settings is not None:
            table = "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in settings.items())])
            self._file.add(0, text.text_pb("settings", table))
            # Runs may have equal settings, so the directory, not a hash of them, names the trial.
            trial = "/".join(run_dir.absolute().parts[-2:])
            self._file.add(0, hparams_api.hparams_pb(_hyperparameters(settings), trial_id=trial))
            if "arm" not in settings:  # The report of a comparison has charts of its own, over examples.
                self._file.add(0, _layout({"over steps": _run_charts(settings.get("metric_names", ()))}))
        self._file.flush()

    @_os_errors()
    def add_steps(
        self, first_step: int, metrics: Mapping[str, NDArray[np.float32]], began: float, ended: float
    ) -> None:
        """Write an event for each step of a block, from `first_step` on; metrics: name → float32 [n].

        The steps of a compiled block have no times of their own, so theirs are spread evenly between `began` and
        `ended`, in seconds since 1970.
        """
        self._file.check()
        columns = [values.tolist() for values in metrics.values()]
        num_steps = len(columns[0])
        times = np.linspace(began, ended, num_steps + 1)[1:].tolist()
        # One message is filled again for each step: to make a new one takes three times as long.
        event = event_pb2.Event(summary=_scalars(dict.fromkeys(metrics, 0.0), "train"))
        value_pbs = list(event.summary.value)
        for i, (wall_time, row) in enumerate(zip(times, zip(*columns, strict=True), strict=True)):
            event.step, event.wall_time = first_step + i, wall_time
            for value_pb, value in zip(value_pbs, row, strict=True):
                value_pb.simple_value = value
            self._file.add_event(event)
        self._file.flush()

    @_os_errors()
    def add_scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Write values by their names, as tags `<group>/<name>`."""
        self._file.check()
        self._file.add(step, _scalars(values, group))
        self._file.flush()

    def __enter__(self) -> SummaryWriter:
        return self

    @_os_errors()
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = api_pb2.STATUS_SUCCESS if kind is None else api_pb2.STATUS_FAILURE
        self._file.add(0, summary.session_end_pb(status))
        self._file.close()


@_os_errors()
def write_curves(run_dir: Path, steps: NDArray[Any], curves: Mapping[str, NDArray[Any]]) -> None:
    """Write curves, tag → floats [n], over steps, rising ints [n]; make the directory if need be."""
    file = _EventFile(run_dir)
    for step, *row in zip(steps.tolist(), *(values.tolist() for values in curves.values()), strict=True):
        file.add(step, _scalars(dict(zip(curves, row, strict=True))))
    file.close()


@_os_errors()
def write_pictures(run_dir: Path, pictures: Mapping[str, bytes]) -> None:
    """Write pictures in PNG format by their tags, at step 0."""
    file = _EventFile(run_dir)
    for tag, png in pictures.items():
        file.add(0, _image(tag, png))
    file.close()


class Chart(NamedTuple):
    """A chart of the page Custom Scalars: the curve of a tag in each run, with a band around it where it has tags.

    Attributes:
        title: above the chart.
        tag: of the curve; without a band, a regular expression of the tags of several.
        lower, upper: the tags of the band's bounds, or None for a curve alone.
    """

    title: str
    tag: str
    lower: str | None = None
    upper: str | None = None

    def to_layout(self) -> layout_pb2.Chart:
        """Return the chart as TensorBoard's own message."""
        if self.lower is None:
            lines = layout_pb2.MultilineChartContent(tag=[f"^{self.tag}$"])
            return layout_pb2.Chart(title=self.title, multiline=lines)
        series = layout_pb2.MarginChartContent.Series(value=self.tag, lower=self.lower, upper=self.upper)
        return layout_pb2.Chart(title=self.title, margin=layout_pb2.MarginChartContent(series=[series]))


def _layout(rows: Mapping[str, Sequence[Chart]]) -> summary_pb2.Summary:
    """Return the page Custom Scalars: title of a row → its charts."""
    categories = [
        layout_pb2.Category(title=title, chart=[chart.to_layout() for chart in of_row])
        for title, of_row in rows.items()
    ]
    return custom_scalar.pb(layout_pb2.Layout(category=categories))


def _run_charts(metric_names: Sequence[str]) -> list[Chart]:
    """Return the charts of a run: its rate, and each metric in training and validation."""
    both = [Chart(name, f"(train|validation)/{re.escape(name)}") for name in metric_names]
    return [Chart("learning rate", "train/learning_rate"), *both]


@_os_errors()
def write_report(
    run_dir: Path,
    report: str,
    pictures: Mapping[str, bytes],
    charts: Mapping[str, Sequence[Chart]] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    measures: Mapping[str, bool] | None = None,
) -> None:
    """Write a report for TensorBoard, in place of an earlier one and of all events in the folders below it.

    Args:
        run_dir: the directory of the report.
        report, pictures: in Markdown, and in PNG format by their tags.
        charts: of the page Custom Scalars: title of a row → its charts.
        rows: settings of each row of the page HParams, as `SummaryWriter` and `write_means` take them. Those that all
            have, and that differ, have columns. Without rows TensorBoard chooses the columns.
        measures: names of the final values that have columns → whether more of it is better.
    """
    for earlier in run_dir.rglob(f"*{EVENTS_SUFFIX}"):  # TensorBoard would show both.
        earlier.unlink()
    file = _EventFile(run_dir)
    file.add(0, text.text_pb("report", report))
    file.add(0, _layout(charts or {}))
    if rows:
        file.add(0, hparams_api.hparams_config_pb(*_columns([_hyperparameters(each) for each in rows], measures or {})))
    file.close()
    write_pictures(run_dir, pictures)


@_os_errors()
def write_means(run_dir: Path, settings: Mapping[str, Any], means: Mapping[str, float]) -> None:
    """Write a row of the page HParams for several runs: the settings they share, and means of their final values."""
    file = _EventFile(run_dir)
    file.add(0, hparams_api.hparams_pb(_hyperparameters(settings), trial_id=f"{run_dir.name}/mean"))
    file.add(0, _scalars(means, FINAL))
    file.add(0, summary.session_end_pb(api_pb2.STATUS_SUCCESS))
    file.close()


def _hyperparameters(settings: Mapping[str, Any]) -> dict[str, str | float]:
    """Return those of the settings that the HParams page shows."""
    given = {**settings, "highest_rate": _highest_rate(settings)}
    given = {name: given[name] for name in HYPERPARAMETERS if given.get(name) is not None}
    # A seed is a name: the page would write the number as 0.0000, and a row of means has words in its place.
    if "seed" in given:
        given["seed"] = _seed_name(given["seed"], "arm" in given)
    return {name: float(v) if isinstance(v, int | float) else str(v) for name, v in given.items()}


def _seed_name(seed: object, is_of_arm: bool) -> str:
    """Return a seed as the page names it."""
    if is_of_arm and isinstance(seed, int) and seed in _TRIAL_SEEDS:
        return f"trial {_TRIAL_SEEDS.stop - seed}"
    return str(seed)


def _highest_rate(config: Mapping[str, Any]) -> float | None:
    """Return the highest rate among a schedule's arguments and those of its parts."""
    rates = [config.get(name) for name in ("learning_rate", "max_lr", "end_lr")]
    return max(filter(None, [*rates, *map(_highest_rate, config.get("schedules", ()))]), default=None)


def _columns(
    runs: Sequence[Mapping[str, str | float]], measures: Mapping[str, bool]
) -> tuple[list[hparams_api.HParam], list[hparams_api.Metric]]:
    """Return the columns of the HParams page for runs with these hyperparameters: those that all have and that differ.

    What one schedule has and another has not would be a column of empty cells.
    """
    shared = [name for name in HYPERPARAMETERS if all(name in run for run in runs)]
    values = {name: list(dict.fromkeys(run[name] for run in runs)) for name in shared}
    hparams = [hparams_api.HParam(name, hparams_api.Discrete(many)) for name, many in values.items() if len(many) > 1]
    arrows = {name: "↑" if is_higher_better else "↓" for name, is_higher_better in measures.items()}
    return hparams, [hparams_api.Metric(f"{FINAL}/{name}", display_name=f"{name} {arrows[name]}") for name in measures]


def _image(tag: str, png: bytes) -> summary_pb2.Summary:
    width, height = struct.unpack(">II", png[16:24])  # The first chunk of every PNG begins with them.
    image = summary_pb2.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, image=image)])


class _EventFile:
    """A TensorBoard event file: serialized `Event` messages in a TFRecord file."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard finds its files by `tfevents`, and reads them in the order of their names.
        number = len(list(directory.glob("*tfevents*")))
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{number:06d}{EVENTS_SUFFIX}"
        self._path = directory / name
        self._records = tf.io.TFRecordWriter(str(self._path))
        self.close = self._records.close
        self.add_event(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def flush(self) -> None:
        self._records.flush()
        self._place = place_of(self._path)

    def check(self) -> None:
        """Raise OSError if the file is not what it was after the last flush."""
        if place_of(self._path) != self._place:
            raise changed(self._path)

    def add(self, step: int, summary: summary_pb2.Summary) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step)
        # Through bytes, because some of TensorBoard's helpers return TensorFlow's twin of the same message.
        event.summary.ParseFromString(summary.SerializeToString())
        self.add_event(event)

    def add_event(self, event: event_pb2.Event) -> None:
        self._records.write(event.SerializeToString())


def _scalars(values: Mapping[str, float], group: str = "") -> summary_pb2.Summary:
    start = group and f"{group}/"
    values_pb = [summary_pb2.Summary.Value(tag=f"{start}{name}", simple_value=v) for name, v in values.items()]
    return summary_pb2.Summary(value=values_pb)
