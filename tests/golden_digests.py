"""Compare two commits to the bit: the weights and the history that each kind of model and each option ends with.

    python tests/golden_digests.py COMMIT            this checkout beside a commit, on this machine
    python tests/golden_digests.py COMMIT --only=re  only the rows whose name matches a regular expression

A row that differs is printed with what differs: `weights`, `history`, or both. Rounding depends on the processor, so
digests of two machines say nothing about each other.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEW = ("sparse_classifier", "two_outputs_with_weights_each", "batch_norm", "tokens", "regularized")
OPTIONS = {
    "accumulate": {"accumulate": 4},
    "clip": {"clip_norm": 0.1},
    "skip": {"skip_non_finite": True},
    "skip and accumulate and clip": {"skip_non_finite": True, "accumulate": 4, "clip_norm": 0.1},
    "average": {"average": 0.9},
    "multipliers": {"rate_multipliers": {"bias": 0.5, "dense": 0.1}},
}
ON_REPLICAS = [
    ("sparse_classifier", {}),
    ("two_outputs_with_weights_each", {"accumulate": 4}),
    ("batch_norm", {"clip_norm": 0.1}),
]


def main(commit, only="."):
    """Run the rows with both packages and print those that differ."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            before, now = (_run_all(package, only) for package in (tree, ROOT))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    differing = [row for row in now if now[row] != before[row]]
    for row in differing:
        pairs = zip(before[row], now[row], ("weights", "history"), strict=True)
        print(f"{row}: {', '.join(what for old, new, what in pairs if old != new)}")
    print(f"{len(now) - len(differing)} of {len(now)} rows are equal to the bit")


def _run_all(package, only):
    rows = {}
    # Strategies of one process disturb each other, so each row of replicas has a process of its own.
    for part in ("one", *(f"replicas {i}" for i in range(len(ON_REPLICAS)))):
        environment = {**os.environ, "PYTHONPATH": f"{package}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--rows", part, only]
        done = subprocess.run(command, env=environment, cwd=package, stdout=subprocess.PIPE, text=True, check=True)
        rows |= json.loads(done.stdout.splitlines()[-1])
    return rows


def rows_of(part, only):
    """Return {row: [digest of the weights, digest of the history]}, as the package on the path computes them."""
    import warnings

    import keras
    import numpy as np
    import tensorflow as tf

    import clr_loop
    from helpers.keras_fit import make, rates_of, stream_of
    from helpers.kinds import KINDS, NUM_EXAMPLES, Kind

    warnings.simplefilter("ignore")
    known = {field.name for field in fields(clr_loop.StepOptions)}

    def options_of(options):
        return clr_loop.StepOptions(**{name: value for name, value in options.items() if name in known})

    def resident(kind, batch_size=32, **options):
        data = {"sample_weight": kind.sample_weight, "class_weight": kind.class_weight}
        return clr_loop.TrainLoop(
            kind.model, kind.inputs, kind.targets, batch_size=batch_size, **data, options=options_of(options)
        )

    def streamed(kind, **options):
        arguments = {"class_weight": kind.class_weight, "options": options_of(options)}
        return clr_loop.TrainLoop.from_dataset(kind.model, stream_of(kind), NUM_EXAMPLES, **arguments)

    def digests(loop, kind, momentums=False):
        rates, history = rates_of(kind), hashlib.sha256()
        for block in np.split(rates, [5, 16]):
            metrics = loop.run(block, np.linspace(0.95, 0.8, len(block)) if momentums else None)
            for name in sorted(metrics):
                history.update(name.encode() + metrics[name].tobytes())
        weights = loop.weights_sha256()
        if loop.averages is not None:
            weights += hashlib.sha256(b"".join(v.numpy().tobytes() for v in loop.averages.values)).hexdigest()
        return [weights, history.hexdigest()]

    def fourfold(kind):
        parts = (kind.inputs, kind.targets, kind.sample_weight)
        longer = [keras.tree.map_structure(lambda x: None if x is None else np.concatenate([x] * 4), p) for p in parts]
        return Kind(kind.model, *longer, rate=kind.rate)

    def resumed(kind, again):
        loop = resident(kind)
        loop.run(rates_of(kind)[:5])
        state, loop = loop.snapshot(), resident(again)
        loop.restore(state)
        return loop

    def half_precision():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        try:
            return make("sparse_classifier")
        finally:
            keras.config.set_dtype_policy(before)

    def on_replicas(name):
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            return make(name)

    jobs = {}
    if part == "one":
        for name in KINDS:
            jobs[f"{name}, arrays"] = lambda name=name: digests(resident(make(name)), make(name))
            jobs[f"{name}, plain graph"] = lambda name=name: digests(
                resident(make(name), jit_compile=False), make(name)
            )
        for name in FEW:
            for what, options in OPTIONS.items():
                jobs[f"{name}, {what}"] = lambda name=name, o=options: digests(resident(make(name), **o), make(name))
            jobs[f"{name}, momentum"] = lambda name=name: digests(resident(make(name)), make(name), momentums=True)
            jobs[f"{name}, stream"] = lambda name=name: digests(streamed(make(name)), make(name))
            jobs[f"{name}, resumed"] = lambda name=name: digests(resumed(make(name), make(name)), make(name))
            jobs[f"{name}, large batches"] = lambda name=name: digests(resident(fourfold(make(name)), 300), make(name))
        for what, options in {"loss scale": {}, **OPTIONS}.items():
            jobs[f"float16, {what}"] = lambda o=options: digests(resident(half_precision(), **o), make(FEW[0]))
    else:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        name, options = ON_REPLICAS[int(part.split()[1])]
        jobs[f"{name}, two replicas, {options}"] = lambda: digests(resident(on_replicas(name), **options), make(name))
    return {row: job() for row, job in jobs.items() if re.search(only, row)}


if __name__ == "__main__":
    if sys.argv[1] == "--rows":
        print(json.dumps(rows_of(*sys.argv[2:])))
    else:
        main(sys.argv[1], *(argument.partition("=")[2] for argument in sys.argv[2:]))
