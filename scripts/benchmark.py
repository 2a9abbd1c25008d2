"""Times clr_loop beside Keras' own loops, JAX, PyTorch and the bare matrix products, in turns, all doing the same work.

Examples:

    python scripts/benchmark.py
    python scripts/benchmark.py --tables=1 --models=relu_mlp --batch_sizes=100 --rounds=3

prints up to three tables (1: an epoch of each; 2: the same with every step in TensorBoard; 3: how clr_loop's cost
grows) and writes benchmark.json, benchmark.md and benchmark.png into --output_dir. JAX (with optax) and PyTorch take
part where they are installed. For figures to be trusted, nothing else may run on the machine.
"""

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from clr_loop.runs import files as run_files
from clr_loop.studies.tables import markdown_table
from contenders.loops import CONTENDERS, Job
from contenders.turns import Measurement, measure_in_turns
from shared import terminal as command_line

FLAGS = flags.FLAGS

MODELS = ("article_mlp", "relu_mlp")
TABLES = ("1", "2", "3")
GROWTH_BATCH_SIZES = (32, 128, 512, 2048, 8192)
GROWTH_COPIES = (1, 4)
GROWTH_WIDTHS = (1, 4, 16)

flags.DEFINE_list("contenders", list(CONTENDERS), f"Of {', '.join(CONTENDERS)}; clr_loop among them.")
flags.DEFINE_list("models", list(MODELS), f"Of {', '.join(MODELS)}.")
flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples per step, at most num_examples.")
flags.DEFINE_list("tables", list(TABLES), "Which tables to measure; 2 brings 1 along.")
flags.DEFINE_integer("rounds", 9, "Timed epochs of each contender.", lower_bound=1)
flags.DEFINE_integer("num_examples", 60000, "The first so many of MNIST.", lower_bound=1, upper_bound=60000)
flags.declare_key_flag("overwrite")
flags.DEFINE_string(
    "output_dir", "runs/benchmark", "Where to write; must be empty or not exist yet, unless --overwrite."
)


def _register(name: str, choices: Sequence[str]) -> None:
    flags.register_validator(
        name, lambda values: bool(values) and set(values) <= set(choices), f"must be of {', '.join(choices)}"
    )


_register("contenders", list(CONTENDERS))
_register("models", MODELS)
_register("tables", TABLES)


@flags.validator("contenders", message="must include clr_loop, which the others are compared with")
def _has_clr_loop(names: list[str]) -> bool:
    return "clr_loop" in names


@flags.validator("batch_sizes", message="must be whole numbers of at least 1, such as 100,2000")
def _are_sizes(values: list[str]) -> bool:
    return all(value.strip().isdecimal() and int(value) > 0 for value in values)


def main() -> None:
    """Measures what the flags ask for, prints the tables and writes them."""
    batch_sizes = [int(size) for size in FLAGS.batch_sizes]
    if max(batch_sizes) > FLAGS.num_examples:
        raise ValueError(
            f"batch_sizes must be at most num_examples {FLAGS.num_examples}, received {max(batch_sizes)}; lower it"
        )
    with run_files.claim(FLAGS.output_dir, "benchmark", overwrite=FLAGS.overwrite) as output_dir:
        _measure_all(batch_sizes, output_dir)


def _measure_all(batch_sizes: Sequence[int], output_dir: Path) -> None:
    keys = [key for key in CONTENDERS if key in FLAGS.contenders]
    present = [key for key in keys if CONTENDERS[key].is_installed()]
    machine = machine_facts()
    texts: list[str] = []

    def say(text: str) -> None:
        texts.append(text)
        print(f"{text}\n", flush=True)

    say(f"{machine['cpu']}, {machine['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()))
    cases: list[tuple[Job, dict[str, Measurement]]] = []
    for model in FLAGS.models if {"1", "2"} & set(FLAGS.tables) else []:
        for size in batch_sizes:
            # Whole batches only: not every library can take a short last one.
            job = Job(model, size, FLAGS.num_examples // size * size)
            measured = measure(dict.fromkeys(present, job), f"{model}, batch {size}", record="2" in FLAGS.tables)
            cases.append((job, measured))
            say(f"## {model}, batch {size}\n\n{epoch_table(keys, measured)}")
            if "2" in FLAGS.tables:
                say(f"With every step in TensorBoard:\n\n{recorded_table(keys, measured)}")
    growth: list[tuple[Job, dict[str, Measurement]]] = []
    for job in growth_jobs(FLAGS.models[0], batch_sizes) if "3" in FLAGS.tables else []:
        what = f"batch {job.batch_size}, {job.copies}× data, {job.width}× width"
        growth.append((job, measure(dict.fromkeys(("clr_loop", "products"), job), what, record=False)))
    if growth:
        say(f"## How an epoch's cost grows, {FLAGS.models[0]}\n\n{growth_table(growth)}")

    (output_dir / "benchmark.md").write_text("\n\n".join(texts) + "\n")
    run_files.write_json(
        output_dir / "benchmark.json",
        {
            "machine": machine,
            "rounds": FLAGS.rounds,
            "cases": [_to_json(*case) for case in cases],
            "growth": [_to_json(*case) for case in growth],
        },
    )
    draw(cases, growth, output_dir / "benchmark.png")
    print(f"results: {output_dir}")


def growth_jobs(model: str, batch_sizes: Sequence[int]) -> list[Job]:
    """Returns the jobs of table 3: one thing grows at a time, batch size, data or width."""
    n = FLAGS.num_examples
    jobs = [Job(model, size, n) for size in GROWTH_BATCH_SIZES if size <= n]
    jobs += [Job(model, size, n, copies=copies) for size in batch_sizes for copies in GROWTH_COPIES]
    jobs += [Job(model, size, n, width=width) for size in batch_sizes for width in GROWTH_WIDTHS[1:]]
    return list(dict.fromkeys(jobs))


def measure(jobs: Mapping[str, Job], what: str, record: bool) -> dict[str, Measurement]:
    """Measures, with a progress bar over the rounds."""
    with tqdm(total=FLAGS.rounds, desc=what, unit="round", disable=None, leave=False) as bar:
        return measure_in_turns(jobs, FLAGS.rounds, record, on_round=bar.update)


def epoch_table(keys: Sequence[str], measured: Mapping[str, Measurement]) -> str:
    """Table 1: an epoch of each contender."""
    header = [
        "contender", "compile s", "epoch s: median", "min–max", "÷ clr_loop", "clr_loop ÷ it", "examples/s",
        "peak MB", "loss of epoch 1",
    ]  # fmt: skip
    ours = measured["clr_loop"].median
    rows = []
    for key in keys:
        if key not in measured:
            rows.append([CONTENDERS[key].label, "not installed", *["–"] * (len(header) - 2)])
            continue
        it = measured[key]
        rows.append(
            [
                CONTENDERS[key].label,
                f"{it.compile_seconds:.2f}" if it.loss is not None else "–",
                f"{it.median:.3f}",
                f"{min(it.epoch_seconds):.3f}–{max(it.epoch_seconds):.3f}",
                f"{it.median / ours:.2f}",
                f"{ours / it.median:.2f}",
                f"{it.examples / it.median:,.0f}",
                f"{it.peak_bytes / 1e6:,.0f}",
                f"{it.loss:.4f}" if it.loss is not None else "–",
            ]
        )
    return markdown_table(header, rows)


def recorded_table(keys: Sequence[str], measured: Mapping[str, Measurement]) -> str:
    """Table 2: an epoch that is recorded, and what of it the recording is."""
    ours = measured["clr_loop"].recorded_median
    rows = []
    for key in keys:
        if key not in measured:
            rows.append([CONTENDERS[key].label, "not installed", "–", "–", "–"])
        elif measured[key].loss is not None:
            it = measured[key]
            rows.append(
                [
                    CONTENDERS[key].label,
                    f"{it.recorded_median:.3f}",
                    f"{min(it.recorded_seconds):.3f}–{max(it.recorded_seconds):.3f}",
                    f"{it.recorded_median / ours:.2f}",
                    f"{it.recording_share:.1%}",
                ]
            )
    return markdown_table(["contender", "epoch s: median", "min–max", "÷ clr_loop", "share of the recording"], rows)


def growth_table(growth: Sequence[tuple[Job, Mapping[str, Measurement]]]) -> str:
    """Table 3: clr_loop against batch size, data and width."""
    rows = []
    for job, measured in growth:
        ours, floor = measured["clr_loop"], measured["products"]
        rows.append(
            [
                f"{job.batch_size:,}",
                f"{job.copies}×",
                f"{job.width}×",
                f"{ours.median:.3f}",
                f"{ours.median / job.steps * 1e3:.3f}",
                f"{ours.examples / ours.median:,.0f}",
                f"{ours.median / floor.median:.2f}",
                f"{ours.compile_seconds:.2f}",
                f"{ours.peak_bytes / 1e6:,.0f}",
            ]
        )
    header = [
        "batch", "data", "width", "epoch s: median", "step ms", "examples/s", "÷ products", "compile s", "peak MB",
    ]  # fmt: skip
    return markdown_table(header, rows)


def draw(
    cases: Sequence[tuple[Job, Mapping[str, Measurement]]],
    growth: Sequence[tuple[Job, Mapping[str, Measurement]]],
    path: Path,
) -> None:
    """Draws tables 1 and 3."""
    from clr_loop.studies import plots  # Only here: the processes that are measured import this script too.

    bars = {
        f"{job.model}, batch {job.batch_size}": {
            CONTENDERS[key].label: it.epoch_seconds for key, it in measured.items()
        }
        for job, measured in cases
    }
    by_batch_size = sorted(
        (
            (job.batch_size, measured)
            for job, measured in growth
            if job.copies == job.width == 1 and job.batch_size in GROWTH_BATCH_SIZES
        ),
        key=lambda pair: pair[0],
    )
    lines = {
        CONTENDERS[key].label: {size: measured[key].median for size, measured in by_batch_size}
        for key in ("clr_loop", "products")
    }
    plots.benchmark(bars, lines if growth else {}).savefig(path)


def machine_facts() -> dict[str, Any]:
    """Returns what the figures depend on: processor, its cores, and versions."""
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


def _to_json(job: Job, measured: Mapping[str, Measurement]) -> dict[str, Any]:
    return {**dataclasses.asdict(job), "contenders": {key: it.to_json() for key, it in measured.items()}}


if __name__ == "__main__":
    command_line.run(main)
