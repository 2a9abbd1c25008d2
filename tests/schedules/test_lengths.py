import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clr_loop.schedules.lengths import to_steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("2000", 2000),
        ("2000st", 2000),
        ("1", 1),
        ("2ep", 60),
        ("0.5ep", 15),
        ("2.5ep", 75),
        ("30%", 135),
        ("25%", 113),  # 112.5: rounded up.
        ("100%", 450),
        ("150%", 675),
        ("0.01%", 1),
        (" 2ep ", 60),
    ],
)
def test_steps_epochs_and_shares_of_the_run_become_steps(text, steps):
    assert to_steps(text, steps_per_epoch=30, total_steps=450) == steps


@given(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1, 1000))
def test_whole_numbers_are_taken_as_they_are(number, steps_per_epoch, epochs):
    total_steps = epochs * steps_per_epoch
    assert to_steps(f"{number}", steps_per_epoch, total_steps) == number
    assert to_steps(f"{number}st", steps_per_epoch, total_steps) == number
    assert to_steps(f"{number}ep", steps_per_epoch, total_steps) == number * steps_per_epoch


@given(st.decimals("0.01", "500", places=2), st.integers(1, 10**9))
def test_a_share_is_rounded_up_in_exact_decimal_arithmetic(percent, total_steps):
    expected = math.ceil(Decimal(total_steps) * percent / 100)
    assert to_steps(f"{percent}%", 1, total_steps) == expected


@pytest.mark.parametrize(
    "text", ["", "2epp", "-3%", "-5", "ep", "%", "2 000", "1e3", "2.ep", ".5ep", "nan", "inf", "2ep3%", "two", "٣ep"]
)
def test_what_is_no_length_is_named_in_one_line(text):
    with pytest.raises(ValueError, match=r"step_size is .*, which is not a length such as") as caught:
        to_steps(text, 30, 450, "step_size")
    assert f"step_size is {text!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0st", "0ep", "0.0%"])
def test_a_length_of_0_is_refused(text):
    with pytest.raises(ValueError, match=r"length is '0.*must be at least 1 step"):
        to_steps(text, 30, 450)


@pytest.mark.parametrize("text", ["2.5", "2.5st"])
def test_steps_must_be_whole(text):
    with pytest.raises(ValueError, match=r"length is '2\.5(st)?'; steps are whole"):
        to_steps(text, 30, 450)
