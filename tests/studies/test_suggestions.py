import dataclasses
import math

import numpy as np
import pytest

from clr_loop.schedules import Triangular, describe
from clr_loop.studies.range_test.curves import Curve, first_divergence, smooth
from clr_loop.studies.range_test.suggestions import Bounds, NoSuggestionError, Suggestion, bounds, disagreement, suggest

NAMES = ["base_lr", "max_lr", "steepest", "valley"]


def dip(log_rate, middle, width):
    """1 at the middle, 0 far from it: what the loss falls by."""
    return np.exp(-0.5 * ((log_rate - middle) / width) ** 2)


def logistic(log_rate, middle, width):
    return 1.0 / (1.0 + np.exp(-(log_rate - middle) / width))


def analytic_curve(seed, num_steps=1000, noise=1.0, **changes):
    """A loss that dips as a Gaussian an accuracy that rises and falls as logistics; with their exact suggestions."""
    rng = np.random.default_rng(seed)
    middle, width = rng.uniform(-3.0, -1.0), rng.uniform(0.5, 0.8)
    rise, fall = middle - rng.uniform(1.0, 2.0), middle + 0.5
    rise_width, fall_width = rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.1)
    rates = np.geomspace(1e-7, 10.0, num_steps)
    x = np.log10(rates)
    loss = 2.3 - 2.0 * dip(x, middle, width) + noise * rng.normal(0.0, rng.uniform(0.02, 0.1), num_steps)
    accuracy = 0.1 + rng.uniform(0.5, 0.85) * logistic(x, rise, rise_width) * logistic(-x, -fall, fall_width)
    accuracy += noise * rng.normal(0.0, rng.uniform(0.01, 0.04), num_steps)
    truth = {
        # A logistic is 1/10 at -ln 9 and 19/20 at ln 19.
        "base_lr": rise - rise_width * math.log(9),
        "max_lr": (rise + rise_width * math.log(19) + fall - fall_width * math.log(19)) / 2,
        # A Gaussian is steepest at one width, 1/10 at √(2 ln 10) widths and 9/10 at √(2 ln 10/9).
        "steepest": middle - width,
        "valley": middle - width * (math.sqrt(2 * math.log(10)) + math.sqrt(2 * math.log(10 / 9))) / 2,
    }
    curve = Curve(
        **{"learning_rate": rates, "loss": loss, "score": accuracy, "time_constant": num_steps / 80} | changes
    )
    return curve, {name: 10.0**value for name, value in truth.items()}


def curve_of(loss, accuracy=None, low=1e-7, high=10.0):
    num_steps = len(loss)
    rates = np.geomspace(low, high, num_steps)
    return Curve(rates, loss, np.linspace(0, 1, num_steps) if accuracy is None else accuracy, num_steps / 80)


def rates_of(*curves):
    return {suggestion.name: suggestion.learning_rate for suggestion in suggest(curves)}


def reasons_of(curve):
    return {suggestion.name: suggestion.reasons for suggestion in suggest([curve])}


@pytest.mark.parametrize("seed", range(20))
def test_every_suggestion_on_a_noisy_analytic_curve_is_within_a_factor_of_two_of_the_truth(seed):
    curve, truth = analytic_curve(seed, num_steps=(400, 1000, 3000)[seed % 3])
    found = rates_of(curve)
    assert list(found) == NAMES
    for name in NAMES:
        assert 0.5 < found[name] / truth[name] < 2.0, name


def test_without_noise_the_suggestions_are_close():
    curve, truth = analytic_curve(0, num_steps=8000, noise=0.0)
    found = rates_of(curve)
    for name in NAMES:
        assert found[name] == pytest.approx(truth[name], rel=0.2), name


@pytest.mark.parametrize("seed", range(5))
def test_steepest_is_by_decade_and_not_by_step_of_a_linear_sweep(seed):
    rates = np.linspace(0.001, 1.0, 2000)
    noise = np.random.default_rng(seed).normal(0.0, 0.02, 2000)
    loss = 2.3 - 2.0 * dip(np.log10(rates), middle=-0.5, width=0.6) + noise
    curve = Curve(rates, loss, np.linspace(0, 1, 2000), 10.0)
    # Per unit of rate instead of per decade, the steepest place of this dip is 3.5 times lower.
    assert 0.5 < rates_of(curve)["steepest"] / 10 ** (-0.5 - 0.6) < 2.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_a_flat_curve_has_no_suggestion_and_is_told_to_raise_end_lr(seed, num_steps):
    rng = np.random.default_rng(seed)
    curve = curve_of(2.3 + rng.normal(0.0, 0.1, num_steps), 0.1 + rng.normal(0.0, 0.04, num_steps), 1e-9, 1e-7)
    for suggestion in suggest([curve]):
        assert suggestion.learning_rate is None
        assert "the curve is flat: the loss stays near 2." in suggestion.reasons[0]
        assert suggestion.reasons[0].endswith("raise end_lr or num_steps")
        assert str(suggestion) == f"{suggestion.name}: no suggestion: {suggestion.reasons[0]}"


@pytest.mark.parametrize(("step", "spike"), [(0, 0.0), (0, 1e-3), (0, 50.0), (0, 1e4), (100, 12.0)])
def test_a_spike_is_ignored(step, spike):
    curve, _ = analytic_curve(3)
    loss = curve.loss.copy()
    loss[step] = spike
    spiked = dataclasses.replace(curve, loss=loss)
    assert spiked.num_usable == curve.num_usable
    assert rates_of(spiked) == pytest.approx(rates_of(curve), rel=0.05)


def until(curve, end):
    """The curve without its steps from `end` on."""
    values = {name: getattr(curve, name)[:end] for name in ("learning_rate", "loss", "score")}
    return dataclasses.replace(curve, **values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_curve_is_read_up_to_its_first_non_finite_loss(bad):
    curve, _ = analytic_curve(4)
    loss = curve.loss.copy()
    loss[700:] = bad
    non_finite = dataclasses.replace(curve, loss=loss)
    cut = until(non_finite, 701)
    assert non_finite.num_usable == cut.num_usable == min(700, curve.num_usable)
    assert rates_of(non_finite) == rates_of(cut)
    assert np.isfinite(non_finite.smoothed_loss[:700]).all()
    assert np.isnan(non_finite.smoothed_loss[700:]).all()


def test_what_lies_beyond_the_divergence_changes_no_suggestion():
    curve, _ = analytic_curve(5)
    end = curve.num_usable
    assert end < 1000
    loss = curve.loss.copy()
    loss[end:] = np.geomspace(10.0, 1e9, 1000 - end)
    wild = dataclasses.replace(curve, loss=loss)
    stopped = until(wild, end + 1)
    assert wild.num_usable == end
    assert rates_of(wild) == rates_of(stopped)
    np.testing.assert_array_equal(wild.smoothed_loss[:end], stopped.smoothed_loss[:end])


def test_smoothing_is_the_weighted_mean_of_its_docstring():
    values = np.cumsum(np.random.default_rng(1).normal(size=60))
    medians = [np.median(values[max(i - 2, 0) : i + 3]) for i in range(60)]
    distance = np.abs(np.arange(60)[:, None] - np.arange(60))
    weights = np.exp(-distance / 7.0)
    np.testing.assert_allclose(smooth(values, 7.0), (weights @ medians) / weights.sum(axis=1), rtol=1e-12)


def test_smoothing_steps_over_nan():
    holed = np.full(50, 2.3)
    holed[[0, 10, 11, 12, 13, 14, 49]] = np.nan
    np.testing.assert_allclose(smooth(holed, 8.0), holed, rtol=1e-12)


def test_a_curve_that_only_rises_is_told_to_lower_start_lr():
    rates = np.geomspace(0.1, 10.0, 500)
    curve = Curve(rates, 2.3 + 5.0 * rates, np.full(500, 0.1), 6.0)
    for reasons in reasons_of(curve).values():
        assert reasons[0].startswith("the loss rose, up to a rate of 1")
        assert reasons[0].endswith("raise num_steps or lower start_lr")


def test_a_curve_cut_at_either_end_says_which_flag_to_change():
    whole, _ = analytic_curve(6)
    x = np.log10(whole.learning_rate)
    steepest = math.log10(rates_of(whole)["steepest"])

    def part(kept):
        return Curve(whole.learning_rate[kept], whole.loss[kept], whole.score[kept], whole.time_constant)

    still_falling = reasons_of(part(x < steepest))
    assert "raise end_lr" in still_falling["max_lr"][0]
    assert "raise end_lr" in still_falling["valley"][0]
    assert still_falling["base_lr"] == ()
    late = reasons_of(part(x > steepest))
    assert "lower start_lr" in late["steepest"][0]
    assert "lower start_lr" in late["valley"][0]


def test_an_accuracy_that_rises_from_the_first_rate_on_has_no_base_lr():
    accuracy = np.concatenate([np.linspace(0.1, 0.9, 100), np.linspace(0.9, 0.1, 400)])
    reasons = reasons_of(curve_of(2.3 - 2.0 * accuracy, accuracy))
    assert "the accuracy rises from the first rates on, 1e-07; lower start_lr" in reasons["base_lr"][0]
    assert reasons["max_lr"] == ()


def test_a_linear_sweep_too_coarse_for_its_low_rates_is_told_to_be_exponential():
    rates = np.linspace(1e-7, 0.1, 1000)
    loss = 2.3 - 2.0 * dip(np.log10(rates), -2.0, 0.7)
    reasons = reasons_of(Curve(rates, loss, loss, 12.5))
    assert "the loss falls fastest from the first rates on, 1e-07; take sweep='exponential'" in reasons["steepest"][0]


def test_an_accuracy_that_does_not_move_has_no_pair():
    curve, _ = analytic_curve(7)
    reasons = reasons_of(Curve(curve.learning_rate, curve.loss, np.full(1000, 0.1), curve.time_constant))
    assert "the accuracy stays near 0.1 while the loss falls; raise num_steps" in reasons["base_lr"][0]
    assert reasons["base_lr"] == reasons["max_lr"]
    assert reasons["steepest"] == ()


def test_too_few_points_are_told_so():
    assert reasons_of(curve_of(np.linspace(2, 1, 9)))["steepest"] == (
        "9 steps in the sweep are too few to read; raise num_steps",
    )
    soon_nan = np.array([2.3] * 5 + [np.nan])
    assert reasons_of(curve_of(soon_nan))["valley"] == (
        "5 steps before the loss diverged are too few to read; lower start_lr or raise num_steps",
    )


def test_a_linear_sweep_from_zero_is_read():
    rates = np.linspace(0.0, 1.0, 1000)
    loss = 2.3 - 2.0 * dip(np.log10(np.maximum(rates, 1e-9)), -0.5, 0.3)
    valley = 10 ** (-0.5 - 0.3 * (math.sqrt(2 * math.log(10)) + math.sqrt(2 * math.log(10 / 9))) / 2)
    assert rates_of(Curve(rates, loss, loss, 12.5))["valley"] == pytest.approx(valley, rel=0.1)


def test_seeds_give_their_median_and_their_range():
    curves = [analytic_curve(seed)[0] for seed in (0, 1, 2)]
    for suggestion in suggest(curves):
        alone = [rates_of(curve)[suggestion.name] for curve in curves]
        assert suggestion.rates == pytest.approx(alone)
        assert suggestion.learning_rate == pytest.approx(sorted(alone)[1])
        assert (suggestion.to_json()["low"], suggestion.to_json()["high"]) == pytest.approx((min(alone), max(alone)))
        assert f"({min(alone):.2g}–{max(alone):.2g} over 3 seeds)" in str(suggestion)


def test_seeds_whose_max_lr_differ_more_than_threefold_are_told_apart():
    def of(*rates):
        return [Suggestion("base_lr", "", (0.001, 0.1), ()), Suggestion("max_lr", "", rates, ())]

    assert disagreement(of(0.002, None, 0.026)) == (
        "the seeds do not agree on max_lr: the highest, 0.026, is 13 times the lowest, 0.002; raise seeds, or tune "
        "the rate"
    )
    assert disagreement(of(0.01, 0.029)) is None
    assert disagreement(of(None, None)) is None


def test_a_loss_that_falls_to_nothing_and_stays_there_is_told_to_be_fitted():
    loss = 2.3 * np.concatenate([np.ones(300), np.geomspace(1.0, 1e-7, 700)])
    falling = curve_of(loss, np.concatenate([np.full(300, 0.1), np.linspace(0.1, 1.0, 700)]))
    reason = (
        "the loss falls to 3e-07 and does not rise again, because the model fits its examples before the rate is too "
        "high for it; lower num_steps, or give more examples"
    )
    assert reasons_of(falling)["max_lr"] == reasons_of(falling)["valley"] == (reason,)


def test_a_seed_without_a_suggestion_is_counted_and_most_seeds_decide():
    curve, _ = analytic_curve(0)
    flat = curve_of(np.full(1000, 2.3))
    two_of_three = suggest([curve, flat, curve])[0]
    assert two_of_three.learning_rate == pytest.approx(rates_of(curve)["base_lr"])
    assert "over 2 of 3 seeds" in str(two_of_three)
    assert two_of_three.rates[1] is None
    assert suggest([flat, flat, curve])[0].learning_rate is None


def test_bounds_are_the_pair_in_two_digits_with_two_whole_cycles():
    suggestions = [Suggestion("base_lr", "", (0.00123456,), ()), Suggestion("max_lr", "", (0.0987,), ())]
    found = bounds(suggestions, total_steps=450)
    assert found == Bounds(0.0012, 0.099, 112)
    assert str(found) == "base_lr=0.0012, max_lr=0.099, step_size=112"
    schedule = Triangular(found.base_lr, found.max_lr, found.step_size)
    assert describe(schedule, 450, steps_per_epoch=30).warnings == ()
    assert schedule([0, 112, 224, 336, 448]).tolist() == [0.0012, 0.099, 0.0012, 0.099, 0.0012]
    assert bounds(suggestions, total_steps=1).step_size == 1


def test_bounds_that_are_missing_or_crossed_say_why():
    none = Suggestion("max_lr", "", (None,), ("the accuracy does not fall; raise end_lr",))
    with pytest.raises(NoSuggestionError, match="no suggestion: the accuracy does not fall; raise end_lr"):
        bounds([Suggestion("base_lr", "", (0.001,), ()), none], 100)
    with pytest.raises(NoSuggestionError, match=r"base_lr 0.1 is not below max_lr 0.01, .*raise num_steps"):
        bounds([Suggestion("base_lr", "", (0.1,), ()), Suggestion("max_lr", "", (0.01,), ())], 100)


def diverged_by_hand(loss, time_constant, factor):
    """The rule of `first_divergence` for losses of any sign, written as a loop."""
    averages, highest_at = [], []
    for i in range(len(loss)):
        weights = np.exp(-np.arange(i, -1, -1) / time_constant)
        averages.append((weights * loss[: i + 1]).sum() / weights.sum())
        if i < time_constant:
            continue
        seen = averages[math.ceil(time_constant) :]
        best = min(seen)
        if averages[-1] == best:
            highest_at = loss[: i + 1]
        limit = best + (factor - 1) * (max(highest_at) - best) if min(loss[: i + 1]) < 0 else factor * best
        if averages[-1] > limit:
            return i
    return None


@pytest.mark.parametrize("offset", [0.0, -0.3, -2.3, -50.0])
def test_divergence_is_found_where_a_running_average_by_hand_finds_it_whatever_the_sign(offset):
    rng = np.random.default_rng(3)
    loss = np.concatenate([np.full(100, 2.0), np.linspace(2.0, 0.5, 60), np.geomspace(0.5, 500.0, 140)])
    loss += offset + rng.normal(0.0, 0.05, 300)
    step = first_divergence(loss, 5.0, 4.0)
    assert step == diverged_by_hand(loss, 5.0, 4.0)
    assert step > 160
    assert [first_divergence(loss[:end], 5.0, 4.0) for end in (step, 3)] == [None, None]


def test_where_a_negative_loss_diverges_does_not_hang_on_a_constant_added_to_it():
    rng = np.random.default_rng(4)
    loss = np.concatenate([np.full(100, -2.0), np.linspace(-2.0, -4.0, 60), np.geomspace(1.0, 100.0, 140) - 5.0])
    loss += rng.normal(0.0, 0.05, 300)
    steps = {first_divergence(loss - constant, 5.0, 4.0) for constant in (0.0, 5.0, 1000.0)}
    assert len(steps) == 1
    assert None not in steps


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("level", [-1000.0, -1.0, 0.0])
def test_noise_alone_around_or_below_zero_is_no_divergence(seed, level):
    loss = level + np.random.default_rng(seed).normal(0.0, 0.5, 1000)
    assert first_divergence(loss, 12.5, 4.0) is None


def loss_curve(loss, low=1e-7, high=10.0):
    return Curve(np.geomspace(low, high, len(loss)), loss, -loss, len(loss) / 80, measure="loss")


@pytest.mark.parametrize("shift", [0.0, -4.0, -2.4])
def test_without_a_score_the_pair_is_read_from_the_fall_of_the_loss_whatever_its_sign(shift):
    rates = np.geomspace(1e-7, 10.0, 4000)
    x = np.log10(rates)
    fall = logistic(x, -4.0, 0.2) * logistic(-x, 1.0, 0.05)
    pair = {s.name: s for s in suggest([loss_curve(2.3 + shift - 2.0 * fall)])}
    assert pair["base_lr"].learning_rate == pytest.approx(10 ** (-4.0 - 0.2 * math.log(9)), rel=0.15)
    middle = (-4.0 + 0.2 * math.log(19) + -1.0 - 0.05 * math.log(19)) / 2
    assert pair["max_lr"].learning_rate == pytest.approx(10**middle, rel=0.15)
    assert "where the loss begins to fall (after 10% of its fall)" in str(pair["base_lr"])
    assert "where it rises again (5% lost)" in str(pair["max_lr"])
    assert "accuracy" not in "".join(map(str, pair.values()))


def test_the_words_name_the_measure_of_the_score():
    curve, _ = analytic_curve(7)
    named = Curve(curve.learning_rate, curve.loss, curve.score, curve.time_constant, measure="auc")
    assert "where the auc begins to rise (after 10% of its rise)" in str(suggest([named])[0])
    flat = Curve(curve.learning_rate, curve.loss, np.full(1000, -2.5), curve.time_constant, measure="r2_score")
    assert "the r2_score stays near -2.5 while the loss falls" in reasons_of(flat)["base_lr"][0]


@pytest.mark.parametrize("seed", range(10))
def test_a_sweep_that_ended_before_the_loss_turned_has_no_upper_end_and_no_bounds(seed):
    # A network learns at any rate, so the accuracy rises, raggedly, and seems to have lost a twentieth here and there.
    rng = np.random.default_rng(seed)
    progress = np.linspace(0.0, 1.0, 1000)
    ragged = 0.05 * np.sin(progress * rng.uniform(60, 90)) + rng.normal(0.0, 0.04, 1000)
    curve = curve_of(2.3 - 0.8 * progress + rng.normal(0.0, 0.05, 1000), 0.1 + 0.5 * progress + ragged, 1e-7, 1e-5)
    found = suggest([curve])
    for suggestion in found:
        if suggestion.name in ("max_lr", "valley"):
            assert suggestion.learning_rate is None
            assert suggestion.reasons[0] == ("the loss does not rise again up to the last rate, 1e-05; raise end_lr")
    with pytest.raises(NoSuggestionError, match="does not rise again"):
        bounds(found, 100)


def test_the_smoothed_loss_ends_with_the_average_that_stopped_the_sweep():
    loss = np.concatenate([np.full(60, 2.0), np.linspace(2.0, 0.5, 60), np.full(20, 100.0)])
    curve = Curve(np.geomspace(1e-5, 1.0, 140), loss, np.zeros(140), 5.0)
    end = curve.num_usable
    weights = np.exp(-np.arange(end, -1, -1) / 5.0)
    assert curve.smoothed_loss[end] == pytest.approx((weights * loss[: end + 1]).sum() / weights.sum())
    assert curve.smoothed_loss[end] > 4.0 * np.min(curve.smoothed_loss[:end])
    assert np.isnan(curve.smoothed_loss[end + 1 :]).all()
    assert np.isnan(curve.smoothed_score[end:]).all()


def test_a_sweep_without_a_single_value_has_no_suggestion():
    none = np.empty(0)
    assert suggest([Curve(none, none, none, 5.0)])[0].reasons == (
        "0 steps in the sweep are too few to read; raise num_steps",
    )
