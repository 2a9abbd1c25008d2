"""A dozen of the trainings in Keras' own tests, by Keras and by the loop; `tests/keras_suite.py` takes all of them."""

import re
import subprocess
import sys
from pathlib import Path

SUITE = Path(__file__).parents[1] / "keras_suite.py"


def test_what_keras_own_tests_train_the_loop_trains_to_the_same_weights_or_refuses_with_the_reason():
    names = ("core/dense", "regularization/dropout", "normalization/batch_normalization")
    files = [f"layers/{name}_test.py" for name in names]
    command = [sys.executable, SUITE, *files, "-k", "basics or dropout or batchnorm or test_dense or fit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    table = done.stdout.partition(" calls of fit: ")[2]
    assert done.returncode == 0, table
    assert int(re.search(r"(\d+) equal", table)[1]) >= 12, table
