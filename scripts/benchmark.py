"""Times clr_loop beside Keras' own loops, JAX, PyTorch and the bare matrix products, in turns, all doing the same work.

Examples:

    python scripts/benchmark.py
    python scripts/benchmark.py --tables=1 --models=relu_mlp --batch_sizes=100 --rounds=3

It prints up to three kinds of tables (1: an epoch of each, and all of them side by side; 2: the same with every step in
TensorBoard; 3: how clr_loop's cost grows) and writes benchmark.json, benchmark.md and benchmark.png into --output_dir.
small_cnn takes the first 10,000 images. JAX (with optax) and PyTorch take part where they are installed. For figures to
be trusted, nothing else may run on the machine.
"""

import clr_loop.commands.early  # noqa: F401

# isort: split
import dataclasses
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from clr_loop.commands import output_flags, terminal
from clr_loop.runs import files as run_files
from clr_loop.studies.report.tables import table_of
from contenders.loops import CONTENDERS, GROWTH_BATCH_SIZES, Job, growth_jobs
from contenders.turns import Measurement, measure_in_turns

FLAGS = flags.FLAGS

# An image costs a convolutional model some forty times as much.
MOST_FOR_CONVOLUTIONS = 10_000

Measured = Mapping[str, Measurement]
Case = tuple[Job, Measured]


def _define_list(name: str, choices: Sequence[str], help_text: str) -> None:
    flags.DEFINE_list(name, list(choices), f"Of {', '.join(choices)}{help_text}")
    flags.register_validator(
        name, lambda values: bool(values) and set(values) <= set(choices), f"must be of {', '.join(choices)}"
    )


_define_list("contenders", list(CONTENDERS), "; clr_loop among them.")
_define_list("models", ("article_mlp", "relu_mlp", "small_cnn"), ".")
_define_list("tables", ("1", "2", "3"), "; 2 brings 1 along.")
flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples in a step, at most num_examples.")
flags.DEFINE_integer("rounds", 9, "Timed epochs of each contender.", lower_bound=1)
flags.DEFINE_integer("num_examples", 60000, "The first so many of MNIST.", lower_bound=1, upper_bound=60000)
flags.DEFINE_string("output_dir", "runs/benchmark", f"Where to write; {output_flags.EMPTY}, unless --overwrite.")
flags.declare_key_flag("overwrite")
flags.declare_key_flag("figure_format")
flags.adopt_module_key_flags(terminal)


@flags.validator("contenders", message="must include clr_loop, which the others are compared with")
def _has_clr_loop(names: list[str]) -> bool:
    return "clr_loop" in names


@flags.validator("batch_sizes", message="must be whole numbers of at least 1, such as 100,2000")
def _are_sizes(values: list[str]) -> bool:
    return bool(values) and all(value.strip().isdecimal() and int(value) > 0 for value in values)


def main() -> None:
    """Measure what the flags ask for, print the tables and write them."""
    dense = [model for model in FLAGS.models if not Job(model, 1, 1).is_convolutional]
    if "3" in FLAGS.tables and not dense:
        raise ValueError("Table 3 widens a dense model; add article_mlp or relu_mlp to --models, or leave it out.")
    batch_sizes = [int(size) for size in FLAGS.batch_sizes]
    if max(batch_sizes) > FLAGS.num_examples:
        raise ValueError(f"The batch size {max(batch_sizes)} is above num_examples {FLAGS.num_examples}; lower it.")
    with output_flags.claim(FLAGS.output_dir, "benchmark") as output_dir:
        machine, texts = machine_facts(), []

        def say(text: str) -> None:
            texts.append(text)
            terminal.say_markdown(f"{text}\n")

        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        say(f"{machine['cpu']}, {machine['cores']} cores; {versions}")
        keys = [key for key in CONTENDERS if key in FLAGS.contenders]
        cases: list[Case] = []
        for model in FLAGS.models if {"1", "2"} & set(FLAGS.tables) else []:
            for size in batch_sizes:
                job = case_job(model, size)
                able = [key for key in keys if CONTENDERS[key].has_convolutions or not job.is_convolutional]
                present = [key for key in able if CONTENDERS[key].is_installed()]
                measured = measure(present, job, f"{model}, batch {size}", record="2" in FLAGS.tables)
                cases.append((job, measured))
                say(f"## {model}, batch {size}\n\n{epoch_table(able, measured)}")
                if "2" in FLAGS.tables:
                    say(f"With every step in TensorBoard:\n\n{recorded_table(able, measured)}")
        if cases:
            say(f"## Side by side\n\n{side_by_side(keys, cases)}")
        growth: list[Case] = []
        for job in growth_jobs(dense[0], FLAGS.num_examples, batch_sizes) if "3" in FLAGS.tables else []:
            what = f"batch {job.batch_size}, {job.copies}× data, {job.width}× width"
            growth.append((job, measure(("clr_loop", "products"), job, what, record=False)))
        if growth:
            say(f"## How an epoch's cost grows, {dense[0]}\n\n{growth_table(growth)}")
        write(output_dir, machine, texts, cases, growth)
    terminal.say(f"results: {output_dir}")


def case_job(model: str, batch_size: int) -> Job:
    """Return the job of tables 1 and 2, of whole batches only: not every library can take a short last one."""
    is_convolutional = Job(model, 1, 1).is_convolutional
    most = max(MOST_FOR_CONVOLUTIONS, batch_size) if is_convolutional else FLAGS.num_examples
    return Job(model, batch_size, min(FLAGS.num_examples, most) // batch_size * batch_size)


def measure(keys: Sequence[str], job: Job, what: str, record: bool) -> dict[str, Measurement]:
    """Measure contenders, with a progress bar over the rounds."""
    with tqdm(total=FLAGS.rounds, desc=what, unit="round", disable=None, leave=False) as bar:
        return measure_in_turns(dict.fromkeys(keys, job), FLAGS.rounds, record, on_round=bar.update)


def epoch_table(keys: Sequence[str], measured: Measured) -> str:
    """Return table 1: an epoch of each contender."""
    ours = measured["clr_loop"].median

    def row(it: Measurement) -> dict[str, str]:
        return {
            "compile s": "–" if it.loss is None else f"{it.compile_seconds:.2f}",
            **_spread(it.epoch_seconds, ours),
            "clr_loop ÷ it": f"{ours / it.median:.2f}",
            "examples/s": f"{it.examples / it.median:,.0f}",
            "peak MB": f"{it.peak_bytes / 1e6:,.0f}",
            "loss of epoch 1": "–" if it.loss is None else f"{it.loss:.4f}",
        }

    return _table(keys, {key: row(it) for key, it in measured.items()})


def recorded_table(keys: Sequence[str], measured: Measured) -> str:
    """Return table 2: an epoch that is recorded, and the share of the recording in it."""
    ours = statistics.median(measured["clr_loop"].recorded_seconds)
    rows = {
        key: {**_spread(it.recorded_seconds, ours), "share of the recording": f"{it.recording_share:.1%}"}
        for key, it in measured.items()
    }
    return _table([key for key in keys if key != "products"], rows)


def _spread(seconds: Sequence[float], ours: float) -> dict[str, str]:
    """Return median, range and ratio to ours."""
    median = statistics.median(seconds)
    return {
        "epoch s: median": f"{median:.3f}",
        "min–max": f"{min(seconds):.3f}–{max(seconds):.3f}",
        "÷ clr_loop": f"{median / ours:.2f}",
    }


def _table(keys: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table with a row for each contender, also for those that are not installed."""
    missing = dict.fromkeys(rows["clr_loop"], "–")
    missing[next(iter(missing))] = "not installed"
    return table_of([{"contender": CONTENDERS[key].label, **rows.get(key, missing)} for key in keys])


def side_by_side(keys: Sequence[str], cases: Sequence[Case]) -> str:
    """Return the one table of all cases: seconds of an epoch, median (range), and clr_loop's part of it."""
    rows = []
    for key in keys:
        row = {"seconds: median (min–max), clr_loop ÷ it": CONTENDERS[key].label}
        for job, measured in cases:
            case = f"{job.model}, {job.batch_size}"
            if key in measured:
                cells = _spread(measured[key].epoch_seconds, measured["clr_loop"].median)
                ratio = measured["clr_loop"].median / measured[key].median
                row[case] = f"{cells['epoch s: median']} ({cells['min–max']}), {ratio:.2f}"
            else:
                row[case] = "–"
        peaks = [measured[key].peak_bytes for _, measured in cases if key in measured]
        if peaks:
            rows.append({**row, "MB": f"{max(peaks) / 1e6:,.0f}"})
    return table_of(rows)


def growth_table(growth: Sequence[Case]) -> str:
    """Return table 3: clr_loop against batch size, data and width."""
    rows = []
    for job, measured in growth:
        ours = measured["clr_loop"]
        row = {
            "batch": f"{job.batch_size:,}",
            "data": f"{job.copies}×",
            "width": f"{job.width}×",
            "epoch s: median": f"{ours.median:.3f}",
            "step ms": f"{ours.median / job.steps * 1e3:.3f}",
            "examples/s": f"{ours.examples / ours.median:,.0f}",
            "÷ products": f"{ours.median / measured['products'].median:.2f}",
            "compile s": f"{ours.compile_seconds:.2f}",
            "peak MB": f"{ours.peak_bytes / 1e6:,.0f}",
        }
        rows.append(row)
    return table_of(rows)


def write(
    output_dir: Path, machine: dict[str, Any], texts: Sequence[str], cases: Sequence[Case], growth: Sequence[Case]
) -> None:
    """Write benchmark.md, benchmark.json and benchmark.png."""
    from clr_loop.studies.pictures.canvas import save  # The processes that are measured import this script too.
    from contenders.figure import benchmark_figure

    (output_dir / "benchmark.md").write_text("\n\n".join(texts) + "\n")
    content = {"machine": machine, "rounds": FLAGS.rounds, "cases": _to_json(cases), "growth": _to_json(growth)}
    run_files.write_json(output_dir / "benchmark.json", content)
    bars = {
        f"{job.model}, batch {job.batch_size}": {CONTENDERS[key].label: it.epoch_seconds for key, it in some.items()}
        for job, some in cases
    }
    sizes = {job.batch_size: some for job, some in growth if job.copies == job.width == 1}
    lines = {
        CONTENDERS[key].label: {n: sizes[n][key].median for n in sorted(sizes) if n in GROWTH_BATCH_SIZES}
        for key in ("clr_loop", "products")
    }
    figure = benchmark_figure(bars, lines if growth else {}, texts[0])
    save(figure, output_dir / "benchmark.png", FLAGS.figure_format)


def _to_json(cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [
        {
            **dataclasses.asdict(job),
            "contenders": {key: {**vars(it), "median_epoch_seconds": it.median} for key, it in measured.items()},
        }
        for job, measured in cases
    ]


def machine_facts() -> dict[str, Any]:
    """Return what the figures depend on: processor, its cores, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = [p for p in ("tensorflow", "keras", "numpy", "jax", "optax", "torch") if util.find_spec(p) is not None]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
    }


if __name__ == "__main__":
    terminal.command(main)()
