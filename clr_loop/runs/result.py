"""What a run gave: a record of each epoch, and the result as a whole."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clr_loop.display import Pictured

# Whole words of a name, between underscores.
_BETTER = {
    "min": r"loss|error|mse|mae|mape|msle|rmse|divergence|\w*entropy|\w*hinge|poisson|cosh|logcosh|perplexity|nll|"
    "brier|false|seconds",
    "max": r"acc|accuracy|auc|precision|recall|f1|fbeta|f_beta|iou|io_u|dice|r2|cosine_similarity|correlation|top_\w+|"
    r"sensitivity|specificity|true|bleu|rouge\w?|psnr|ssim|ndcg",
}
_NO_METRICS = ("epoch", "step", "learning_rate", "epoch_seconds", "input_wait_seconds")


def direction_of(measure: str) -> Literal["min", "max"] | None:
    """Return whether lower or higher values of a metric are better, judged by its name; None if that is not known.

    >>> direction_of("val_accuracy"), direction_of("val_mae"), direction_of("val_quality")
    ('max', 'min', None)
    """
    known: list[Literal["min", "max"]] = ["min", "max"]  # As in binary_accuracy_loss, the loss says it.
    return next((mode for mode in known if re.search(rf"(^|_)({_BETTER[mode]})(_|$)", measure, re.IGNORECASE)), None)


def higher_is_better(measure: str) -> bool:
    """Return whether higher values of a metric are better, judged by its name.

    Raises:
        ValueError: if that is not known.
    """
    direction = direction_of(measure)
    if direction is None:
        raise ValueError(
            f"Whether higher values of {measure} are better does not follow from its name; say it, with mode='max' or "
            "mode='min' where there is a monitor, and with higher_is_better elsewhere."
        )
    return direction == "max"


@dataclass(frozen=True)
class Monitor:
    """The metric that epochs are rated by.

    Attributes:
        name: None for `val_accuracy` or, where there is none, `val_loss`.
        mode: see `RunOptions.mode`.
    """

    name: str | None = None
    mode: Literal["auto", "min", "max"] = "auto"

    def rating(self, metrics: Mapping[str, float]) -> float | None:
        """Return a number that is higher for better epochs; None if the metric is missing or NaN.

        >>> Monitor().rating({"loss": 0.5, "val_loss": 0.25}), Monitor("val_loss", "max").rating({"loss": 0.5})
        (-0.25, None)

        Raises:
            ValueError: if which values are better is not known.
        """
        names = ("val_accuracy", "val_loss") if self.name is None else (self.name,)
        name = next((name for name in names if name in metrics), None)
        if name is None or math.isnan(metrics[name]):
            return None
        is_higher_better = higher_is_better(name) if self.mode == "auto" else self.mode == "max"
        return metrics[name] if is_higher_better else -metrics[name]


@dataclass
class Best:
    """The best rating so far; see `Monitor`."""

    monitor: Monitor = Monitor()
    _rating: float = -math.inf

    def is_better(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these are better than all before them, and remember them."""
        value = self.monitor.rating(metrics)
        if value is None or value <= self._rating:
            return False
        self._rating = value
        return True


@dataclass(frozen=True)
class EpochRecord:
    """What is known at the end of an epoch, or at a validation within it.

    Attributes:
        epoch: int, counted from 1.
        step: int, the epoch's last step, 0-based.
        learning_rate: float, of that step.
        metrics: `loss` and the compiled metrics, floats by name: means over the epoch's steps so far, weighted by the
            examples of each, before its update. Metrics that are no means (`TrainLoop.not_means`) are left out. After
            them all names with `val_`: values on the validation data after this step, where there is such data; with
            an average of the weights also with `averaged_val_`.
        epoch_seconds: float, of training alone, in this epoch so far.
        input_wait_seconds: float, the part of them in which nothing was computed because the next batch was not there.
    """

    epoch: int
    step: int
    learning_rate: float
    metrics: dict[str, float]
    epoch_seconds: float
    input_wait_seconds: float = 0.0

    @property
    def input_wait_share(self) -> float:
        """The share of the epoch's seconds that was spent in waiting for batches, 0–1."""
        return self.input_wait_seconds / self.epoch_seconds

    def to_row(self) -> dict[str, float]:
        """Return the epoch as a line of `epochs.csv`."""
        row = dataclasses.asdict(self)
        metrics = row.pop("metrics")
        return {name: row.pop(name) for name in ("epoch", "step", "learning_rate")} | metrics | row

    @classmethod
    def from_row(cls, row: dict[str, float]) -> EpochRecord:
        """Return the epoch of a line of `epochs.csv`. Raises KeyError if a column is missing."""
        metrics = {name: value for name, value in row.items() if name not in _NO_METRICS}
        return cls(metrics=metrics, **{name: row[name] for name in _NO_METRICS})  # type: ignore[arg-type]


class Reached(NamedTuple):
    """What a run took to reach a target: steps, examples visited, and seconds of training alone."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True, repr=False)
class TrainingResult(Pictured):
    """What a run gave. In a notebook it shows itself as a table and the picture of its rates and metrics, `plot()`.

    Attributes:
        settings: JSON types: everything that made the run what it is, with the versions of its libraries.
        history: `step` int64 [n]; `learning_rate`, `loss` and each compiled metric float32 [n]; `momentum`, too, where
            it was cycled.
        epochs: a record for each epoch.
        test: `loss` and the metrics on the test examples, if there are any, of each model by its name: "final", and
            "averaged" and "best" where there are such.
        validations: a record for each validation within an epoch; see `RunOptions.validate_every`.
        compile_seconds: float, tracing and compiling, before the first step.
        num_examples: int, examples in an epoch.
        num_skipped: int, updates skipped because they were not finite.
        weights_sha256: digest of all variables of model and optimizer at the end.
        device: for example `CPU:0`.
        is_timed: bool, whether the run had the machine to itself; if not, its seconds say nothing about the training.
    """

    settings: dict[str, Any]
    history: dict[str, NDArray[Any]]
    epochs: list[EpochRecord]
    compile_seconds: float
    num_examples: int
    num_skipped: int
    weights_sha256: str
    device: str
    is_timed: bool = True
    validations: list[EpochRecord] = dataclasses.field(default_factory=list)
    test: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def final(self) -> dict[str, float]:
        """The metrics of the last epoch."""
        return self.epochs[-1].metrics

    @property
    def validated(self) -> list[EpochRecord]:
        """The records of all validations, those at the epochs' ends among them, by step."""
        return sorted([*self.epochs, *self.validations], key=lambda record: record.step)

    @property
    def epoch_seconds(self) -> list[float]:
        """Seconds of training alone, for each epoch."""
        return [record.epoch_seconds for record in self.epochs]

    @property
    def median_epoch_seconds(self) -> float:
        """Median of `epoch_seconds`."""
        return statistics.median(self.epoch_seconds)

    @property
    def train_seconds(self) -> float:
        """Sum of `epoch_seconds`."""
        return sum(self.epoch_seconds)

    @property
    def examples_per_second(self) -> float:
        """Examples trained on per second of training."""
        return self.num_examples * len(self.epochs) / self.train_seconds

    def reach(self, measure: str, target: float, is_higher_better: bool | None = None) -> Reached | None:
        """Return what it took until the first validation that reached a target, or None where none did.

        Args:
            measure: a metric of the epochs, such as `val_accuracy`.
            target: float; a value that is as good or better reaches it.
            is_higher_better: None takes what `higher_is_better` says of the measure.

        Raises:
            ValueError: if the run has no such metric.
        """
        if measure not in self.final:
            raise ValueError(f"The run has no measure {measure!r}; it has {', '.join(self.final)}.")
        sign = 1.0 if (higher_is_better(measure) if is_higher_better is None else is_higher_better) else -1.0
        for record in self.validated:
            if sign * record.metrics[measure] >= sign * target:
                earlier = sum(self.epoch_seconds[: record.epoch - 1])
                (examples,) = self.examples_visited(np.array([record.step]))
                return Reached(record.step + 1, int(examples), earlier + record.epoch_seconds)
        return None

    def examples_visited(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many training examples were visited, repeated ones included, when each of these steps was done.

        Args:
            steps: int [n], 0-based, each up to the last one of the run.
        """
        ends = np.array([record.step for record in self.epochs])
        epochs = np.searchsorted(ends, steps)
        within = (steps - np.append(-1, ends)[epochs]) * self.settings["batch_size"]
        return epochs * self.num_examples + np.minimum(within, self.num_examples)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.final.items())
        length = f"{len(self.epochs)} epochs, {len(self.history['step']):,} steps"
        return f"TrainingResult({length}: {metrics}; trained {self.train_seconds:.2f} s)"

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "epochs": len(self.epochs),
                "steps": f"{len(self.history['step']):,}",
                **{name: f"{value:.4g}" for name, value in self.final.items()},
                "trained": f"{self.train_seconds:.2f} s, {self.examples_per_second:,.0f} examples/s",
                "compiled": f"{self.compile_seconds:.2f} s",
            }
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json` as JSON types; the other files of the run hold the rest."""
        own = ("final", "num_skipped", "num_examples", "epoch_seconds", "compile_seconds", "train_seconds",
               "examples_per_second", "device", "is_timed", "weights_sha256", "test")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in own},
            "steps": len(self.history["step"]),
            "epochs": len(self.epochs),
            "input_wait_shares": [record.input_wait_share for record in self.epochs],
            **{name: self.settings[name] for name in ("batch_size", "schedule", "seed", "versions")},
        }
