"""`find_rate`: range tests of a loop over a few seeds, and the bounds that they suggest, in one call."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from tqdm import tqdm

from clr_loop.arguments import checked_types
from clr_loop.display import Drawing, Pictured, in_notebook
from clr_loop.loop.loop import Metrics, TrainLoop
from clr_loop.studies.range_test import NoSuggestionError, RangeTest, run, suggested_bounds, text
from clr_loop.studies.range_test.picture import range_test_picture
from clr_loop.studies.range_test.sweep import NUM_STEPS
from clr_loop.studies.seeds import Seeded, checked_seeds, initial_state


@dataclass(frozen=True, repr=False)
class RangeTests(Pictured):
    """The range tests of one loop, and what they suggest. `print` shows it in words, `plot` as a picture.

    Attributes:
        tests: one for each seed.
        epochs: int, of the planned run.
        settings: what was tested: "model" and "optimizer".
    """

    tests: Sequence[RangeTest]
    epochs: int
    settings: dict[str, str]

    @property
    def bounds(self) -> dict[str, Any]:
        """The suggested base_lr, max_lr and step_size (two cycles in the planned run), as `Triangular` takes them.

        Raises:
            NoSuggestionError: if the curves do not support a pair; it says why, and what to change.
        """
        return dataclasses.asdict(suggested_bounds(self.tests, self.epochs))

    def plot(self) -> Drawing:
        """Return the picture of the curves and of what they suggest."""
        return range_test_picture({self.tests[0].settings["batch_size"]: self.tests}, self.settings)

    def _rows(self) -> list[dict[str, object]]:
        try:
            bounds = {name: f"{value:g}" for name, value in self.bounds.items()}
        except NoSuggestionError as error:
            bounds = {"bounds": str(error)}
        seeds = ", ".join(str(test.settings["seed"]) for test in self.tests)
        return [{**bounds, "batch size": self.tests[0].settings["batch_size"], "seeds": seeds}]

    def __str__(self) -> str:
        return text(self.tests, self.epochs)


@checked_types
def find_rate(
    loop: TrainLoop,
    build_model: Callable[..., keras.Model] | None = None,
    *,
    seeds: int | Sequence[int] = 3,
    epochs: int = 15,
    num_steps: int = NUM_STEPS,
    **sweep: Any,
) -> RangeTests:
    """Run an LR range test for each seed and leave the loop as it was.

        rates = find_rate(loop)
        fit(loop, Triangular(**rates.bounds), validation, epochs=15)

    Args:
        loop: at any step.
        build_model: makes a model like the loop's, with fresh weights for each seed; see `seeds.Seeded`. None starts
            each sweep from the weights that the loop has, so seeds differ in the order of the data alone.
        seeds: how many, or the ints in [0, 2**32) themselves.
        epochs: int, at least 1, of the planned run: the suggested step_size makes two cycles of them.
        num_steps: int, at least 2, of a sweep.
        **sweep: start_lr, end_lr, sweep and early_stop, see `range_test.run`.

    Raises:
        ValueError: if an argument is out of its range, or build_model returns one model twice.
        TypeError: if an argument has another type.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
    """
    before, tests = loop.snapshot(), []
    seeds = checked_seeds(seeds)
    make_model = None if build_model is None else Seeded(build_model)
    file, is_hidden = (sys.stdout, False) if in_notebook() else (sys.stderr, None)
    with tqdm(total=num_steps, unit="step", file=file, disable=is_hidden, leave=False, dynamic_ncols=True) as bar:

        def move(steps_done: int, metrics: Metrics) -> None:
            bar.update(steps_done - bar.n)

        try:
            for i, seed in enumerate(seeds):
                bar.reset()
                bar.set_description(f"sweep {i + 1} of {len(seeds)}")
                state = {"seed": seed} if make_model is None else initial_state(make_model, seed)
                loop.restore(dataclasses.replace(before, **state))
                tests.append(run(loop, num_steps=num_steps, on_block=move, **sweep))
        finally:
            loop.restore(before)
    settings = {"model": loop.model.name, "optimizer": type(loop.optimizer).__name__}
    return RangeTests(tests, epochs, settings)
