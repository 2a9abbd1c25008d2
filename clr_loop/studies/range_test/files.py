"""What range tests say, and the files that they leave behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clr_loop.arguments import spelled
from clr_loop.runs import events
from clr_loop.runs import files as run_files
from clr_loop.runs.settings import versions
from clr_loop.studies.pictures.canvas import Format, save, to_png
from clr_loop.studies.range_test.held_out import MOST_EPOCHS
from clr_loop.studies.range_test.picture import range_test_picture
from clr_loop.studies.range_test.suggestions import Bounds, disagreement, suggest
from clr_loop.studies.range_test.sweep import RangeTest, bounds_or_reason


def text(tests: Sequence[RangeTest], epochs: int, line_of: Callable[[Bounds], str] = str) -> str:
    """Return in words why each sweep ended, what they suggest, and last the line to paste, or why there is none.

    Args:
        tests, epochs: see `suggested_bounds`.
        line_of: the bounds → the line to paste; without it, the flags.
    """
    lines = [f"seed {test.settings['seed']}: {test.stop_reason}" for test in tests]
    lines += [str(suggestion) for suggestion in suggest([test.curve for test in tests])]
    lines += [f"note: {note}" for note in notes(tests)]
    pair = bounds_or_reason(tests, epochs)
    if isinstance(pair, Bounds):
        lines.append(f"two whole cycles in {epochs} epochs at batch {tests[0].settings['batch_size']}:")
    return "\n".join([*lines, line_of(pair) if isinstance(pair, Bounds) else str(pair)])


def notes(tests: Sequence[RangeTest]) -> list[str]:
    """Return what makes the suggestions of these tests doubtful, a sentence each."""
    settings, found = tests[0].settings, disagreement(suggest([test.curve for test in tests]))
    epochs = max(len(test.curve.loss) for test in tests) / settings["steps_per_epoch"]
    if settings["held_out"] or epochs <= MOST_EPOCHS:
        return [found] if found else []
    seen = (
        f"the {tests[0].curve.measure} is that of training examples, which the sweep visited {epochs:.3g} times, so "
        f"max_lr may be too high; lower {spelled('num_steps')}, or give more examples"
    )
    return [seen, *([found] if found else [])]


def write(
    tests: Sequence[RangeTest],
    epochs: int,
    output_dir: Path,
    settings: Mapping[str, Any],
    figure_format: Format = "png",
) -> None:
    """Write range_test.json, .csv and .png and TensorBoard's events: a run for each seed, and the picture's panels.

    Args:
        tests, epochs: see `suggested_bounds`.
        output_dir: an existing directory.
        settings: JSON types, to be kept with the tests: names of dataset, model and so on.
        figure_format: of a further file of the picture.
    """
    pair = bounds_or_reason(tests, epochs)
    content = {
        "settings": {**settings, "epochs": epochs},
        "tests": [{**test.settings, "stop_reason": test.stop_reason, "steps": len(test.curve.loss)} for test in tests],
        "measure": tests[0].curve.measure,
        "suggestions": [suggestion.to_json() for suggestion in suggest([test.curve for test in tests])],
        "notes": notes(tests),
        "bounds": dataclasses.asdict(pair) if isinstance(pair, Bounds) else {"reason": str(pair)},
        "versions": versions(),
    }
    run_files.write_json(output_dir / "range_test.json", content)
    columns = {test.settings["seed"]: test.columns() for test in tests}
    rows = [
        {"seed": seed, "step": step, **{name: f"{values[step]:.9g}" for name, values in curves.items()}}
        for seed, curves in columns.items()
        for step in range(len(curves["loss"]))
    ]
    run_files.write_csv(output_dir / "range_test.csv", rows)
    picture = range_test_picture({tests[0].settings["batch_size"]: tests}, settings)
    save(picture.together(), output_dir / "range_test.png", figure_format)
    events.write_pictures(
        output_dir, {f"range_test/{name}": to_png(figure) for name, figure in picture.alone().items()}
    )
    for seed, curves in columns.items():
        events.write_curves(output_dir / f"seed_{seed}", np.arange(len(curves["loss"])), curves)
