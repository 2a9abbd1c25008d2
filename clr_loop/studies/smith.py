"""Smith's own experiment: his learning-rate policies on CIFAR-10, each with its own length, beside what he published.

L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 4.1.1: tables 1 and 2 with
SGD, table 3 with other optimizers. The network is `caffe_cifar10`, in batches of 100. Where the paper leaves something
open, this module takes

- for `exp` the first rate of `fixed`, and for `exp_range` the bounds 0.001 and 0.006 that its range test gave,
- for `fixed` of table 3 the same drops as in table 1,
- for the arguments of Adam and RMSprop those of Caffe.

The paper's `triangular2` also divides its bounds by ten at steps 16,000 and 22,000. `fixed_25000`, which is not in the
paper, does only that, so the two tell the triangles from the drops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from clr_loop.runs import files as run_files
from clr_loop.schedules import Constant, ExponentialDecay, LinearRamp, Schedule, Triangular, Triangular2, join
from clr_loop.studies.arms import ArmRun
from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.sample import Sample
from clr_loop.studies.pictures.canvas import Format, save
from clr_loop.studies.pictures.comparison import policies_picture
from clr_loop.studies.report.tables import table_of
from clr_loop.studies.report.words import conclusions

_MEASURE = "val_accuracy"
_GAMMA = 0.99994
# Optimizer → its bounds, and the accuracy in percent of each policy.
_TABLE_3 = {
    "nesterov": (0.001, 0.006, {"fixed": 82.1, "triangular_25000": 81.3}),
    "adam": (0.0005, 0.002, {"fixed": 81.4, "triangular_25000": 79.8, "triangular_70000": 81.1}),
    "rmsprop": (0.0001, 0.0003, {"fixed": 75.2, "triangular_25000": 72.8, "triangular_70000": 75.1}),
}
OPTIMIZERS = ("sgd", *_TABLE_3)

_NOTE = """\
Accuracies are percentages of the validation examples, ± the standard deviation over seeds; the paper's are of one run
each, on the test set. The best step is the highest of all validations, chosen on the same examples that it is measured
on, so it is higher than what anybody can count on. The last column counts, seed by seed, the steps to the first
validation that is as good as the fixed policy's last one; the fixed policy's own row says when it got there itself."""


@dataclass(frozen=True)
class Falling(Triangular):
    """A `Triangular` schedule both of whose bounds are multiplied by `gamma` at each step: the paper's `exp_range`.

    `ExpRange`, like the CLR repository, keeps base_lr.
    """

    gamma: float = dataclasses.field(kw_only=True)

    def formula(self, ops: Any, steps: Any) -> Any:
        """Return the rates; see `Schedule.formula`."""
        return super().formula(ops, steps) * self.gamma ** ops.float64(steps)


@dataclass(frozen=True)
class Policy:
    """A learning-rate policy of the paper.

    Attributes:
        name: the paper's; where it has two of one name, the number of steps follows.
        schedule: learning rates, shortened to a scale.
        num_steps: int, the paper's.
        accuracy: float, the paper's, in percent; None where it has no such policy.
    """

    name: str
    schedule: Schedule
    num_steps: int
    accuracy: float | None


def policies(optimizer: str = "sgd", scale: float = 1.0) -> list[Policy]:
    """Return the paper's policies for one of `OPTIMIZERS`, `fixed` first.

    Args:
        scale: float in (0, 1]: what every length of a schedule is multiplied by. A rate that falls exponentially falls
            as far in the shortened run.
    """

    def steps(number: int) -> int:
        return max(1, round(number * scale))

    def fixed(rate: float, *drops: int) -> Schedule:
        return join([Constant(rate), Constant(rate / 10), Constant(rate / 100)], [steps(drop) for drop in drops])

    if optimizer != "sgd":
        low, high, accuracies = _TABLE_3[optimizer]
        of_name = {"fixed": fixed(low, 60_000, 65_000), "triangular": Triangular(low, high, steps(2_000))}
        parts = {name: name.partition("_") for name in accuracies}
        return [
            Policy(name, of_name[kind], int(number or 70_000), accuracies[name])
            for name, (kind, _, number) in parts.items()
        ]
    gamma = _GAMMA ** (1 / scale)
    stages = [Triangular2(low, 5 * low, steps(size)) for low, size in ((1e-3, 2_000), (1e-4, 1_000), (1e-5, 500))]
    decay = [LinearRamp(0.007, 0.001, steps(4_000)), Constant(0.001)]
    return [
        Policy("fixed", fixed(0.001, 60_000, 65_000), 70_000, 81.4),
        Policy("triangular2", join(stages, [steps(16_000), steps(22_000)]), 25_000, 81.4),
        Policy("fixed_25000", fixed(0.001, 16_000, 22_000), 25_000, None),
        Policy("decay", join(decay, [steps(4_000)]), 25_000, 78.5),
        Policy("exp", ExponentialDecay(0.001, decay_steps=1, decay_rate=gamma), 70_000, 79.1),
        Policy("exp_range", Falling(0.001, 0.006, steps(2_000), gamma=gamma), 42_000, 82.2),
    ]


def make_optimizer(name: str) -> keras.optimizers.Optimizer:
    """Return one of `OPTIMIZERS` with Caffe's arguments. The model's penalties are its weight decay."""
    if name == "adam":
        return keras.optimizers.Adam(epsilon=1e-8)
    if name == "rmsprop":
        return keras.optimizers.RMSprop(rho=0.99, epsilon=1e-8)
    return keras.optimizers.SGD(momentum=0.9, nesterov=name == "nesterov")


def write(
    runs: Sequence[ArmRun], of: Sequence[Policy], title: str, output_dir: Path, figure_format: Format = "png"
) -> str:
    """Write report.md, smith.json and smith.png into a directory that exists, and return the report.

    Args:
        runs: every policy with every seed; the schedule's name is the policy's.
        of: the policies, `fixed` first.
        title: what was run, for the head of report and picture.
        figure_format: of a further file of the picture.
    """
    rows = [_row(policy, runs, of[0].name) for policy in of]
    comparison = compare(runs, Measure(_MEASURE))
    effects = [effect for effect in comparison.effects if effect.measure.name == _MEASURE]
    follows = conclusions(dataclasses.replace(comparison, effects=effects))
    sections = [
        f"# Smith's experiment\n\n{title}",
        table_of([_in_words(row) for row in rows]),
        _NOTE,
        "## What follows\n\n" + "\n".join(f"- {sentence}" for sentence in follows),
    ]
    text = "\n\n".join(sections) + "\n"
    (output_dir / "report.md").write_text(text)
    run_files.write_json(output_dir / "smith.json", {"title": title, "policies": rows})
    save(policies_picture(runs, _MEASURE, title).together(), output_dir / "smith.png", figure_format)
    return text


def _row(policy: Policy, runs: Sequence[ArmRun], fixed: str) -> dict[str, Any]:
    """Return what a policy gave with each seed, accuracies in percent, beside what the paper has."""
    results = {
        name: {run.seed: run.result for run in runs if run.arm.schedule_name == name} for name in (policy.name, fixed)
    }
    own = results[policy.name]
    best = [max(result.validated, key=lambda record: record.metrics[_MEASURE]) for result in own.values()]
    reached = [result.reach(_MEASURE, results[fixed][seed].final[_MEASURE]) for seed, result in own.items()]
    return {
        "policy": policy.name,
        "published": {"steps": policy.num_steps, "accuracy": policy.accuracy},
        "seeds": list(own),
        "steps": len(next(iter(own.values())).history["step"]),
        "accuracy": [100 * result.final[_MEASURE] for result in own.values()],
        "best_accuracy": [100 * record.metrics[_MEASURE] for record in best],
        "best_steps": [record.step + 1 for record in best],
        "steps_to_fixed": [each and each.steps for each in reached],
    }


def _in_words(row: Mapping[str, Any]) -> dict[str, str]:
    published = row["published"]
    reached = tuple(steps for steps in row["steps_to_fixed"] if steps is not None)
    samples = {name: Sample(tuple(row[name])) for name in ("accuracy", "best_accuracy", "best_steps")}
    return {
        "policy": row["policy"],
        "the paper": f"{published['accuracy']} after {published['steps']:,}" if published["accuracy"] else "–",
        "steps": f"{row['steps']:,}",
        "accuracy at the end": samples["accuracy"].in_words(".2f"),
        "accuracy at the best step": samples["best_accuracy"].in_words(".2f"),
        "that step": samples["best_steps"].in_words(",.0f"),
        "steps to fixed's accuracy": (f"{Sample(reached).in_words(',.0f')} " if reached else "– ")
        + f"({len(reached)} of {len(row['seeds'])})",
    }
