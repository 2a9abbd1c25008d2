"""reproduce_smith.py on a hundred images: killed, resumed, and what it says."""

import json
import re
import signal
import time

from helpers.scripts import start_script


def test_killed_and_resumed_it_goes_on_from_the_last_checkpoint_and_reports_all_policies(
    commands, cifar_like, tmp_path
):
    output_dir = tmp_path / "out"
    flags = [f"--dataset={cifar_like}", "--scale=0.001", "--batch_size=10", f"--output_dir={output_dir}"]
    process = start_script("reproduce_smith.py", *flags)
    second = output_dir / "triangular2_batch_10" / "seed_0"
    while not (second / "checkpoints" / "step_0000000010" / "manifest.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = output_dir / "fixed_batch_10" / "seed_0" / "result.json"
    before = finished.stat().st_mtime_ns
    begun = (second / "history.csv").read_text().splitlines()[:11]
    assert len(begun) == 11

    done = commands.succeed("reproduce_smith", *flags, "--resume")
    assert finished.stat().st_mtime_ns == before
    assert (second / "history.csv").read_text().splitlines()[:11] == begun
    names = ["fixed", "triangular2", "fixed_25000", "decay", "exp", "exp_range"]
    told = re.findall(r"^run (\d) of 6.*: (\w+), seed 0: ", done.stdout, re.MULTILINE)
    assert [number for number, _ in told] == list("123456")
    assert sorted(name for _, name in told) == sorted(names)  # The seed draws their order.
    assert "images, sgd, batch 10, 0.001 of the paper's steps, validated on test examples, 1 seed\n" in done.stdout
    told = json.loads((output_dir / "smith.json").read_text())["policies"]
    assert [(row["policy"], row["steps"]) for row in told] == list(zip(names, (70, 20, 20, 20, 70, 40), strict=True))
    config = json.loads((second / "config.json").read_text())
    assert (config["model"], config["scale"]) == ("caffe_cifar10", 0.001)
    assert config["rate_multipliers"] == {"(convolution_[12]|logits)/bias": 2.0}
