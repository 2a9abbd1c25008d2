"""What `fit` shows of a run while it goes on."""

import math
import sys

import pytest

from clr_loop.runs import progress
from clr_loop.runs.fit import fit
from clr_loop.schedules import Triangular
from helpers import small
from helpers.runs import CrashError, crash_after

VALIDATION = small.FEATURES[:50], small.LABELS[:50]


@pytest.fixture(scope="module")
def loop():
    return small.loop_of()


@pytest.fixture(autouse=True)
def _from_the_beginning(loop):
    before = loop.snapshot()
    yield
    loop.restore(before)


def train(loop, **arguments):
    return fit(loop, Triangular(0.001, 0.01, 4), validation=VALIDATION, epochs=2, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"verbose": 0}])
def test_it_is_silent_where_nobody_looks_or_if_it_is_told_so(loop, arguments, capsys):
    train(loop, **arguments)
    assert capsys.readouterr() == ("", "")


def test_verbose_2_prints_the_schedule_and_a_line_for_each_epoch(loop, capsys):
    result = train(loop, verbose=2)
    out, err = capsys.readouterr()
    *description, header, first, second = out.splitlines()
    assert err == ""
    assert description[0].startswith("8 steps, 2 epochs: the learning rate starts at 0.001")
    assert header.split() == ["epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]
    for number, line in enumerate((first, second), 1):
        cells = dict(zip(header.split(), line.split(), strict=True))
        assert cells["epoch"] == f"{number}/2"
        for name, value in result.epochs[number - 1].metrics.items():
            assert cells[name] == f"{value:#.4g}"
        assert len(line) == len(header)


def test_a_function_is_no_schedule_that_can_be_described_but_its_epochs_are_told(loop, capsys):
    fit(loop, lambda steps: 0.01 + 0.0 * steps, epochs=1, verbose=2)
    assert capsys.readouterr().out.split()[:2] == ["epoch", "lr"]


def test_a_metric_that_is_nan_after_the_first_epoch_has_no_column(capsys):
    lines = progress.EpochLines()
    lines.set_params({"epochs": 2, "steps": 1, "first_step": 0, "schedule": None})
    lines.on_train_begin()
    logs = {"learning_rate": 0.1, "epoch_seconds": 1.0, "loss": math.nan, "mae": 0.5}
    for epoch in range(2):
        lines.on_epoch_end(epoch, logs)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "lr", "mae", "seconds"]
    assert [row.split() for row in rows] == [["1/2", "0.1", "0.5000", "1.00"], ["2/2", "0.1", "0.5000", "1.00"]]


def test_a_table_for_a_narrow_terminal_keeps_loss_and_accuracy_and_says_what_it_leaves_out(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "79")
    lines = progress.EpochLines()
    lines.set_params({"epochs": 1, "steps": 1, "first_step": 0, "schedule": None})
    lines.on_train_begin()
    values = {f"{kind}{name}": 0.5 for kind in ("", "val_") for name in ("loss", "accuracy", "b_mae", "a_loss")}
    lines.on_epoch_end(0, {"learning_rate": 0.1, "epoch_seconds": 1.0, **values})
    note, *header, row = capsys.readouterr().out.splitlines()
    assert note == "note: the terminal is too narrow for val_a_loss, a_loss, val_b_mae, b_mae"
    assert header[0].split() == ["val_"]
    assert header[1].split() == ["epoch", "lr", "loss", "accuracy", "val_loss", "accuracy", "seconds"]
    assert len(row) <= 79


def test_verbose_1_draws_a_bar_that_says_what_is_done_between_the_steps_too(loop, capsys):
    train(loop, verbose=1)
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["1/2", "2/2"]
    places = [err.index(text) for text in ("compiling …", "0/8", "validating: ", "8/8")]
    assert places == sorted(places)
    assert not err.rsplit("\r", 2)[1].strip()  # It is erased at last.


@pytest.mark.parametrize("is_terminal", [True, False])
def test_by_itself_it_shows_a_bar_on_a_terminal_and_in_a_notebook(loop, is_terminal, monkeypatch, capsys):
    if is_terminal:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    else:
        shell = type("Shell", (), {"kernel": None})
        monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": shell}))
    train(loop)
    out, err = capsys.readouterr()
    assert "8/8" in (err if is_terminal else out)
    assert (err == "") == (not is_terminal)


def test_a_run_that_fails_leaves_no_bar_behind(loop, capsys):
    with pytest.raises(CrashError):
        train(loop, verbose=1, callbacks=[crash_after(4)])
    assert not capsys.readouterr().err.rsplit("\r", 2)[1].strip()
