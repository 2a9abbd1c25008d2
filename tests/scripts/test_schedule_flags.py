import dataclasses
import importlib
import pickle
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from clr_loop.commands import schedule_flags
from clr_loop.runs.fit import fit
from clr_loop.schedules import (
    Constant,
    CosineDecay,
    CosineRestarts,
    ExponentialDecay,
    ExponentialRamp,
    ExpRange,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
    Triangular,
    Triangular2,
    describe,
    join,
)
from helpers import small


@pytest.fixture
def given():
    """Parses flags for one test."""
    with flagsaver.flagsaver():
        yield lambda text: flags.FLAGS(["script", *text.split()])


def make(name):
    schedule_flags.check([name])
    return schedule_flags.make(name, steps_per_epoch=30, total_steps=450)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("constant", "", Constant(0.1)),
        ("constant", "--learning_rate=0.2", Constant(0.2)),
        ("triangular", "", Triangular(0.001, 0.006, 2000)),
        ("triangular", "--step_size=25%", Triangular(0.001, 0.006, 113)),
        ("triangular", "--step_size=2ep --step_size_down=90st", Triangular(0.001, 0.006, 60, 90)),
        ("triangular2", "--max_lr=0.1 --momentum=0.85,0.95", Triangular2(0.001, 0.1, 2000, momentum=(0.85, 0.95))),
        ("exp_range", "--gamma=0.5", ExpRange(0.001, 0.006, 2000, gamma=0.5)),
        ("one_cycle", "", OneCycle(0.006, 450)),
        (
            "one_cycle",
            "--total_steps=50% --pct_start=0.5 --div_factor=10 --final_div_factor=100 --anneal=linear",
            OneCycle(0.006, 225, 0.5, 10.0, 100.0, "linear"),
        ),
        ("cosine_restarts", "", CosineRestarts(0.001, 0.006, 225)),
        ("cosine_restarts", "--first_cycle_steps=1ep --t_mul=2 --m_mul=0.5", CosineRestarts(0.001, 0.006, 30, 2, 0.5)),
        ("linear_ramp", "--start_lr=0 --end_lr=1", LinearRamp(0.0, 1.0, 450)),
        ("exponential_ramp", "--total_steps=1ep", ExponentialRamp(1e-7, 10.0, 30)),
        ("exponential_decay", "--decay_steps=2ep --staircase", ExponentialDecay(0.1, 60, 0.9, True)),
        ("one_triangle", "", OneTriangle(0.001, 0.006, 450)),
        ("linear_decay", "--max_lr=0.1", LinearDecay(0.001, 0.1, 450)),
        ("cosine_decay", "--base_lr=0 --total_steps=50%", CosineDecay(0.0, 0.006, 225)),
        ("constant", "--warmup=1ep", join([LinearRamp(0.1 / 30, 0.1, 30), Constant(0.1)], [30])),
        (
            "triangular",
            "--warmup=50st --step_size=25%",
            join([LinearRamp(0.001 / 50, 0.001, 50), Triangular(0.001, 0.006, 100)], [50]),
        ),
    ],
)
def test_the_flags_make_the_schedule(given, name, text, expected):
    given(text)
    schedule = make(name)
    assert schedule == expected
    assert type(schedule) is type(expected)


def test_every_argument_of_every_schedule_is_a_flag():
    for kind in schedule_flags.SCHEDULES.values():
        assert {field.name for field in dataclasses.fields(kind) if field.init} <= set(flags.FLAGS)


def test_a_length_in_epochs_is_another_number_of_steps_at_another_batch_size(given):
    given("--step_size=2ep")
    assert schedule_flags.make("triangular", 600, 9000).step_size == 1200
    assert schedule_flags.make("triangular", 30, 450).step_size == 60


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("triangular", "--warmup=1", "warmup is 1 steps; give at least 2, and fewer than the 450 of the run"),
        ("triangular", "--warmup=100%", "warmup is 450 steps"),
        ("triangular", "--step_size=2epp", "step_size is '2epp', which is not a length such as"),
        ("triangular", "--step_size_down=-3%", "step_size_down is '-3%', which is not a length such as"),
        ("triangular", "--step_size=0", "step_size is '0'; it must be at least 1 step"),
        ("triangular", "--momentum=0.9,0.8", "momentum is (0.9, 0.8)"),
        ("triangular", "--max_lr=-1", "max_lr is -1.0"),
        (
            "triangular",
            "--gamma=0.9",
            "--gamma means nothing to triangular; remove it or choose one that takes it: exp",
        ),
        ("constant", "--momentum=0.8,0.9", "--momentum means nothing to constant"),
        ("one_cycle", "--base_lr=0.1", "--base_lr means nothing to one_cycle"),
    ],
)
def test_a_bad_value_and_a_flag_that_nothing_takes_are_named_in_one_line(given, name, text, message):
    given(text)
    with pytest.raises(ValueError) as caught:
        make(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_is_taken_if_any_of_several_schedules_takes_it(given):
    given("--gamma=0.9 --learning_rate=0.2")
    schedule_flags.check(["constant", "exp_range"])


@pytest.mark.parametrize("text", ["--momentum=low,high", "--momentum=0.8,0.9,1", "--momentum="])
def test_momentum_is_one_number_or_two(given, text):
    with pytest.raises(flags.IllegalFlagValueError, match=r"must be one number, such as 0\.9, or two, low,high"):
        given(text)


def test_one_momentum_is_the_optimizers_so_any_schedule_goes_with_it(given):
    given("--momentum=0.9")
    assert make("triangular") == Triangular(0.001, 0.006, 2000)
    assert make("constant") == Constant(0.1)


# --- Schedules of the user's own ---

MODULE = """\
from clr_loop import Triangular

def saw(steps_per_epoch, max_lr=1.0):
    return lambda steps: max_lr * (1 - steps % steps_per_epoch / steps_per_epoch)

def one_cycle(total_steps, max_lr, step_size_down=None):
    return Triangular(max_lr / 4, max_lr, total_steps // 2, step_size_down)

def three():
    return 3

def one_rate_for_all():
    return lambda steps: 0.1

def failing():
    return lambda steps: steps / nothing
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a module of the user's schedules, and writes another text into it."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "own_schedules.py").write_text(text)
        sys.modules.pop("own_schedules", None)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(MODULE)
    yield write
    sys.modules.pop("own_schedules", None)


def test_a_function_of_the_user_gets_the_flags_that_it_has_parameters_for(given, own):
    given("--max_lr=0.02 --warmup=50st")
    assert make("own_schedules:one_cycle") == join([LinearRamp(0.0001, 0.005, 50), Triangular(0.005, 0.02, 200)], [50])


def test_it_may_return_a_function_of_steps(given, own):
    given("--max_lr=0.5")
    schedule, steps = make("own_schedules:saw"), np.arange(450)
    np.testing.assert_allclose(schedule(steps), np.tile(np.linspace(0.5, 0.0, 31)[:-1], 15), rtol=1e-12)
    assert "highest (0.5) at step 0" in str(describe(schedule, 450, 30))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(schedule))(steps), schedule(steps))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "three",
            "",
            "schedule own_schedules:three must return a schedule of clr_loop or a function of steps, but it ",
        ),
        (
            "one_rate_for_all",
            "",
            "its function returned rates of shape () for steps of shape (2,); it takes an array of",
        ),
        ("failing", "", "schedule own_schedules:failing failed: NameError: name 'nothing' is not defined"),
        ("missing", "", "schedule own_schedules:missing cannot be imported"),
        ("saw", "--gamma=0.9", "--gamma means nothing to own_schedules:saw; remove it or choose one that takes it"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_a_line(given, own, name, text, message):
    given(text)
    with pytest.raises(ValueError) as caught:
        make(f"own_schedules:{name}")
    assert message in str(caught.value)


def test_a_run_is_not_resumed_with_another_function_of_the_same_name(given, own, tmp_path):
    given("--max_lr=0.01")
    loop = small.loop_of()
    start = loop.snapshot()

    def train(epochs, **arguments):
        loop.restore(start)
        schedule = schedule_flags.make("own_schedules:saw", loop.steps_per_epoch, epochs * loop.steps_per_epoch)
        return fit(loop, schedule, epochs=epochs, run_dir=tmp_path / "run", **arguments)

    train(1)
    assert len(train(2, resume=True).epochs) == 2
    own(MODULE.replace("(1 -", "(2 -"))
    with pytest.raises(ValueError, match=r"schedule \{'first_epoch_sha256': '.*'\}, now \{'first_epoch_sha256': '"):
        train(3, resume=True)
