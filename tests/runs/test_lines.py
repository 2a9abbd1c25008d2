"""Lines on a terminal: broken between words, in columns, and with the time that is left."""

import itertools
import sys
import time

import pytest

from clr_loop.runs.lines import Columns, RunCount, wrapped

TEXT = "note: step_size 15 is 1 epoch, and Smith recommends 2 to 10; for two whole cycles use --step_size=30 or more"


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")


def test_a_line_is_broken_between_words_on_a_terminal_and_hangs_behind_its_label(terminal):
    lines = wrapped(TEXT).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert all(line.startswith(" " * 6) and line[6] != " " for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == TEXT
    assert wrapped("one\n\ntwo\n") == "one\n\ntwo\n"


def test_a_line_in_a_file_stays_whole():
    assert wrapped(TEXT) == TEXT


NAMES = ["epoch", "lr", "loss", "sparse_categorical_accuracy", "val_loss", "val_sparse_categorical_accuracy", "seconds"]
CELLS = {name: f"{i}.25e-05" for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("most", [None, 100, 80])
def test_values_stand_under_their_names_and_names_break_where_the_terminal_is_narrow(most):
    columns = Columns(dict.fromkeys(NAMES, 8), most)
    header, row = columns.header().splitlines(), columns.row(CELLS)
    assert len({len(line) for line in (header[-1], row)}) == 1
    assert len(row) <= (most or 1000)
    ends = [row.index(cell) + len(cell) for cell in CELLS.values()]
    for begin, end, name in zip([0, *ends], ends, NAMES, strict=False):
        assert "".join(line[begin:end].strip() for line in header) == name
    assert (len(header) == 1) == (most is None)


def test_what_does_not_fit_is_left_out_from_the_end_of_what_may_be_left_out():
    columns = Columns(dict.fromkeys(["epoch", "loss", "a", "b", "seconds"], 9), 32, optional=["loss", "b", "a"])
    assert (list(columns.names), columns.left_out) == (["epoch", "loss", "seconds"], ["a", "b"])
    assert max(map(len, columns.header().splitlines())) <= 32


def test_a_series_of_runs_is_counted_and_the_rest_is_estimated_from_those_that_were_trained(monkeypatch):
    seconds = itertools.count(0, 30)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    count = RunCount(6)
    assert count.end("a") == "run 1 of 6"  # It was read back, so nothing is known of how long a run takes.
    assert count.start("b") == "run 2 of 6"
    assert count.end("b") == "run 2 of 6, about 2 min left"  # Four runs of 30 s.
    assert count.start("c") == "run 3 of 6"  # It diverges, and is not told as finished.
    assert count.start("d") == "run 4 of 6"
    assert count.end("d") == "run 4 of 6, about 40 s left"  # 60 s for three runs, two are left.
    count.start("e"), count.end("e"), count.start("f")
    assert count.end("f") == "run 6 of 6"


def test_runs_side_by_side_count_when_they_end(monkeypatch):
    seconds = itertools.count(0, 30)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    count = RunCount(5, num_read_back=1)
    assert count.end("read") == "run 1 of 5"
    assert count.end("a") == "run 2 of 5, about 2 min left"  # 30 s for one run, three are left.
    assert count.end("b") == "run 3 of 5, about 60 s left"
    count.end("c")
    assert count.end("d") == "run 5 of 5"
