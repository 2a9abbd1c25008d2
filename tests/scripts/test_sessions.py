"""What a person types one after another, from a table of their own to a table for a paper."""

import csv
import json
import shlex

import keras
import numpy as np

from clr_loop.runs.models import load_run

TREES = ("ash", "fir", "oak")


def write_trees(path):
    """Write a table of 300 trees of three kinds, in which the kind follows from two measurements."""
    rng = np.random.default_rng(0)
    rows = [(round(2 * kind + rng.normal(), 3), round(rng.normal() - kind, 3), TREES[kind]) for kind in [0, 1, 2] * 100]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("height", "girth", "kind"), *rows])


def test_from_a_table_to_a_rate_a_model_more_epochs_and_predictions(commands, tmp_path):
    write_trees(tmp_path / "trees.csv")
    data = [f"--dataset={tmp_path}/trees.csv", "--target=kind", "--model=relu_mlp", "--batch_size=20"]
    found = commands.succeed("range_test", *data, "--num_steps=200", "--seeds=2", f"--output_dir={tmp_path}/rate")
    _, _, *flags = shlex.split(found.stdout.splitlines()[-1])  # What it says to paste.
    run_dir = tmp_path / "run"
    commands.succeed("train", *flags, "--epochs=4", f"--run_dir={run_dir}")
    commands.succeed("train", *flags, "--epochs=6", f"--run_dir={run_dir}", "--resume")
    run = load_run(run_dir)
    assert len(run.result.epochs) == 6
    assert run.result.final["val_accuracy"] > 0.7
    model = keras.models.load_model(run_dir / "final.keras")
    classes = json.loads((run_dir / "config.json").read_text())["classes"]
    kinds = [classes[i] for i in np.argmax(model.predict(np.array([[-1.0, 1.0], [5.0, -3.0]]), verbose=0), axis=1)]
    assert kinds == ["ash", "oak"]


def test_three_batch_sizes_and_a_table_for_a_paper(commands, tmp_path):
    write_trees(tmp_path / "trees.csv")
    done = commands.succeed(
        "compare_batch_sizes", f"--dataset={tmp_path}/trees.csv", "--target=kind", "--model=relu_mlp", "--epochs=2",
        "--batch_sizes=20,60,120", "--schedules=constant,one_triangle", "--learning_rate=0.01", "--max_lr=0.01",
        "--seeds=4", f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert "mean val_accuracy after 3 seeds, too few for a verdict: " in " ".join(done.stdout.split())
    tex = (tmp_path / "out" / "comparison.tex").read_text()
    assert [tex.count(rf"one\_triangle, batch {size} ") for size in (20, 60, 120)] == [1, 1, 1]
    with open(tmp_path / "out" / "arms.csv", newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["4"] * 6
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["seeds"] == [0, 1, 2, 3]
