"""Memory, read from the process that holds it."""

import subprocess
import sys

CODE = """
import sys
import keras
from clr_loop import data
from clr_loop.data import models
from clr_loop.loop.loop import TrainLoop
from clr_loop.schedules import Triangular
from clr_loop.runs.fit import fit

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

mnist = data.load("mnist")
few = data.Split(*(array[:500] for array in mnist.train))
train_loop = TrainLoop(models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), *few, batch_size=50)
sizes = []
fit(train_loop, Triangular(0.001, 0.01, 20), few, epochs=200, run_dir=sys.argv[1], checkpoint_every=10,
    on_epoch=lambda record: sizes.append(resident_bytes()))
print(train_loop.num_traces, sizes[49], sizes[199])
"""


def test_a_run_of_200_epochs_holds_no_more_at_its_end_than_at_its_fiftieth(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "run"], capture_output=True, text=True, check=True, timeout=300
    )
    num_traces, at_50, at_200 = map(int, done.stdout.split())
    assert num_traces == 1
    # 150 epochs of ten steps: their history is 24 KB; anything that grew with a step or an epoch would show.
    assert at_200 < at_50 + 10e6
