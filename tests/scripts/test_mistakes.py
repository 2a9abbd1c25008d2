"""What a mistake in the flags is answered with: one line, before TensorFlow starts and before anything is written."""

import numpy as np
import pytest

from helpers.scripts import assert_one_line_error

TRAIN = [
    (["--schedule=square"], "--schedule=square: must be constant, triangular, "),
    (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
    (["triangular"], "'triangular' is not a flag; write flags as --name=value"),
    (["--base_lr=0.1", "--max_lr=0.01"], "base_lr"),
    (["--base_lr=-0.1"], "base_lr is -0.1"),
    (["--schedule=constant", "--learning_rate=nan"], "learning_rate is nan"),
    (["--step_size=0"], "step_size is '0'"),
    (["--schedule=exp_range", "--gamma=1.5"], "gamma is 1.5"),
    (["--batch_size=0"], "batch_size is 0; choose one from 1 to the 900 training examples that there are"),
    (["--batch_size=901"], "batch_size is 901; choose one from 1 to the 900 training examples that there are"),
    (["--epochs=0"], "epochs is 0; a run visits the data at least once"),
    (["--epochs=99999999999999999999"], "epochs is 99999999999999999999, and no run takes that many"),
    (["--on_change=rebase"], "--on_change=rebase says how to go on with a run; add --resume"),
    (["--on_change=stay"], "value should be one of <keep|replace|rebase>"),
    (["--resume", "--overwrite"], "--resume and --overwrite were both given"),
    (["--profile=20:10"], "profile is (20, 10); give (first, last) with 0 <= first < last"),
    (["--profile=20"], "--profile=20 cannot be read. Write FROM:TO in steps, such as 100:200."),
    (["--clip_norm=-1"], "clip_norm is -1"),
    (["--keep_checkpoints=0"], "keep_checkpoints is 0; it must be at least 1"),
    (["--checkpoint_every=often"], "checkpoint_every is 'often', which is not a length such as"),
    (["--average=maybe"], "--average=maybe cannot be read. Write a number or a word."),
    (["--average=1"], "average is 1.0; it must be above 0 and below 1"),
    (["--rate_multipliers=bias"], "--rate_multipliers=bias cannot be read. Write regex=factor,regex=factor."),
    (["--rate_multipliers=bias=-2"], "rate_multipliers['bias'] is -2.0; it must be at least 0 and finite"),
    (["--jit_compile=maybe"], "value should be one of <auto|true|false>"),
    (["--dataset=minst"], "There is no dataset 'minst'. Choose mnist, fashion_mnist, "),
    (["--dataset=none.npz"], "none.npz"),
    (["--dataset=mnist", "--data_dir=nowhere"], "nowhere/train-images-idx3-ubyte.gz"),
    (["--logical_devices=2"], "--logical_devices is of use with --strategy=mirrored only"),
    (["--strategy=multi_worker"], "TF_CONFIG"),
    (["--strategy=mirrored", "--jit_compile=true"], "--jit_compile=true cannot go with --strategy"),
    (["--strategy=mirrored", "--feed=resident"], "--feed=resident cannot go with --strategy"),
    (["--strategy=parameter_server"], "value should be one of <none|mirrored|multi_worker>"),
]
COMPARE = [
    (["--resume", "--overwrite"], "--resume and --overwrite were both given"),
    (["--batch_sizes=100,many"], "must be whole numbers, none twice, such as 100,2000"),
    (["--schedules=constant,square"], "must be of constant, triangular"),
    (["--bounds=range_test", "--max_lr=1"], "--bounds=range_test finds base_lr and max_lr itself"),
    (["--seeds=0,1,1"], "such as 0,1,2, each once"),
    (["--validate_every=-1"], "validate_every is -1; it must be at least 0"),
    (["--strategy=multi_worker"], "--strategy=multi_worker is for train.py"),
    (["--parallel=0"], "--parallel=0: must be a number such as 4, auto, or dask://host:8786"),
    (["--parallel=dask://head-node"], "must be a number such as 4, auto, or dask://host:8786"),
    (["--threads=0"], "--threads"),
    (["--strategy=mirrored", "--parallel=2"], "--parallel takes the whole machine for one"),
    (["--tune=2"], "--tune=2 would try too few rates"),
    (["--tune=8", "--schedules=constant,linear_ramp"], "--tune finds a highest rate, and linear_ramp has none"),
    (["--bounds=range_test", "--warmup=1ep"], "--warmup climbs to a rate that --tune and --bounds=range_test would"),
    (["--tune=8", "--learning_rate=0.1"], "--tune finds the rate of every arm itself; leave out --learning_rate"),
    (["--tune=8", "--bounds=range_test"], "leave out --bounds=range_test"),
    (["--tune=8", "--measure=loss"], "--tune needs a measure on held-out examples, such as val_loss"),
    (["--batch_sizes=50,901"], "batch_size is 901; choose one from 1 to the 900 training examples"),
    (["--batch_sizes=50,850", "--tune=8"], "batch_size is 850; choose one from 1 to the 810 training examples"),
    (["--batch_sizes=900,10", "--budget=steps", "--epochs=4"], "The budget of 4 steps is less than half an epoch"),
]
RANGE_TEST = [
    (["--momentum=0.8,0.9"], "--momentum=low,high is cycled by a schedule, and a range test has"),
    (["--early_stop=often"], "early_stop=often: must be a number such as 4, or none"),
    (["--num_steps=99999999999"], "means 99,999,999,999 steps"),
]
PREVIEW = [
    (["--step_size=2epp"], "step_size is '2epp', which is not a length such as"),
    (["--momentum=0.9"], "is the optimizer's, and a preview has none; give low,high"),
    (["--epochs=0"], "epochs is 0; a run visits the data at least once"),
    (["--epochs=99999999999999999999"], "and no run takes that many steps"),
    (["--batch_size=60001"], "batch_size is 60001; choose one from 1 to the 60000 training examples"),
]
PROVE = [
    (["--train_flags=--checkpoint_every=never"], "must ask for checkpoints"),
    (["--train_flags=--checkpoint_every never"], "must ask for checkpoints"),
]
SMITH = [
    (["--scale=2"], "--scale=2"),
    (["--optimizer=lion"], "should be one of <sgd|nesterov|adam|rmsprop>"),
    (["--resume", "--overwrite"], "--resume and --overwrite were both given"),
    (["--dataset=none.npz"], "none.npz does not exist"),
    (["--batch_size=200"], "batch_size is 200; choose one from 1 to the 100 training examples"),
]
LIKELIEST = [
    ("train", "lr", "learning_rate"),
    ("train", "bs", "batch_size"),
    ("compare_batch_sizes", "bs", "batch_sizes"),
    ("train", "batch", "batch_size"),
    ("train", "epoch", "epochs"),
    ("train", "output", "run_dir"),
    ("range_test", "out", "output_dir"),
    ("train", "optim", "optimizer"),
    ("preview", "momentm", "momentum"),
]
TABLES = {
    "train": TRAIN, "compare_batch_sizes": COMPARE, "range_test": RANGE_TEST, "preview": PREVIEW,
    "prove_resume": PROVE, "reproduce_smith": SMITH,
}  # fmt: skip
CASES = [(name, *case) for name, table in TABLES.items() for case in table]


@pytest.fixture
def mistake(commands, separable, cifar_like, tmp_path):
    """Run a command that has small data, must fail without TensorFlow, and must write nothing."""
    dataset = {"reproduce_smith": [f"--dataset={cifar_like}"], "preview": [], "prove_resume": []}

    def run(name, *flags):
        where = f"--{'run' if name == 'train' else 'output'}_dir={tmp_path}/out"
        data = dataset.get(name, [f"--dataset={separable}"])
        data += ["--batch_sizes=50,100"] if name == "compare_batch_sizes" else []
        done = commands.run(name, *data, where, *flags, tensorflow=False)
        assert done.stdout == ""
        assert not (tmp_path / "out").exists()
        return done

    return run


@pytest.mark.parametrize(("name", "flags", "message"), CASES)
def test_a_mistake_is_one_line(mistake, name, flags, message):
    assert_one_line_error(mistake(name, *flags), message)


@pytest.mark.parametrize(("name", "typed", "meant"), LIKELIEST)
def test_an_unknown_flag_is_answered_with_the_likeliest_one(mistake, name, typed, meant):
    message = f"Unknown command line flag '{typed}'; did you mean --{meant}? --help"
    assert_one_line_error(mistake(name, f"--{typed}=1"), message)


def test_an_unknown_flag_that_is_like_none_gets_no_guess(mistake):
    message = "Unknown command line flag 'zzz'; --help and --helpfull list the flags."
    assert_one_line_error(mistake("train", "--zzz=1"), message)


def test_too_few_examples_to_hold_out_are_told(mistake, tmp_path):
    labels = np.arange(12) % 4
    images = np.zeros((12, 4, 4), np.float32)
    np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    flags = [f"--dataset={tmp_path}/few.npz", "--batch_sizes=4", "--tune=8"]
    assert_one_line_error(mistake("compare_batch_sizes", *flags), "no example of class 0 is held out")


@pytest.mark.parametrize(("name", "flag"), [("train", "--run_dir"), ("compare_batch_sizes", "--output_dir")])
def test_a_directory_that_holds_something_else_is_refused_and_untouched(commands, separable, tmp_path, name, flag):
    (tmp_path / "result.json").write_text("precious")
    sizes = ["--batch_sizes=50,100"] if name == "compare_batch_sizes" else []
    done = commands.run(name, f"--dataset={separable}", *sizes, f"{flag}={tmp_path}", tensorflow=False)
    assert_one_line_error(done, f"The directory {tmp_path} is not empty and holds no ")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "precious")]


@pytest.mark.parametrize(("name", "flag"), [("train", "--run_dir"), ("preview", "--output_dir")])
def test_a_file_in_the_place_of_a_directory_is_named_and_kept(mistake, tmp_path, name, flag):
    (tmp_path / "file").write_text("mine")
    done = mistake(name, f"{flag}={tmp_path}/file/run")
    assert_one_line_error(done, f"The directory {tmp_path}/file/run cannot be made, because a file has its name")
    assert (tmp_path / "file").read_text() == "mine"
