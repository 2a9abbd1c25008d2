"""How often a judgment is wrong: comparisons of four arms drawn from known distributions, judged as the package judges.

`cd tests && python -m helpers.judgments` prints the whole table, beside what a t test on all seeds would say.
"""

import csv
import functools
import itertools
import sys
from pathlib import Path

import numpy as np

from clr_loop.studies.comparison.effects import FEWEST_SEEDS
from clr_loop.studies.comparison.failures import LARGEST_SHARE, failed
from clr_loop.studies.comparison.statistics import ALPHA, critical_t, holm, p_value, standard_error

_ARTICLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "article.csv"
_ARMS = [(str(size), name) for size in (100, 2000) for name in ("constant", "triangular")]


def accuracies():
    """The validation accuracies of the article's arms, a seed in a row and an arm in a column."""
    with open(_ARTICLE, newline="") as file:
        of_run = {
            (row["seed"], row["batch_size"], row["schedule"]): row["val_accuracy"] for row in csv.DictReader(file)
        }
    seeds = sorted({int(seed) for seed, _, _ in of_run})
    return np.array([[float(of_run[(str(seed), *arm)]) for arm in _ARMS] for seed in seeds])


RUNS = accuracies()
# An arm in a column, an effect in a row: batch size, schedule, interaction, both.
EFFECTS = np.array([[-0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, -0.5, 0.5], [1, -1, -1, 1], [-1, 0, 0, 1]])
BOTH = 3
SD = 0.003


def _normal(rng, shape):
    return rng.normal(0.94, SD, shape)


def _failing(share, rng, shape):
    """An arm that gives 0.94 and, now and then, 0.76."""
    return np.where(rng.random(shape) < share, rng.normal(0.76, SD, shape), _normal(rng, shape))


def _last_failing(rng, shape):
    """One in ten runs of the last arm alone fails."""
    y = _normal(rng, shape)
    y[:, -1] = _failing(0.1, rng, y[:, -1].shape)
    return y


def _skewed(rng, shape):
    return 0.94 - SD * rng.standard_exponential(shape) + SD


def _heavy_tailed(rng, shape):
    return 0.94 + SD * rng.standard_t(3, shape)


def _failing_together(rng, shape):
    """One seed in ten fails in all arms."""
    fails = rng.random((shape[0], 1, shape[2])) < 0.1
    return np.where(fails, rng.normal(0.76, SD, shape), _normal(rng, shape))


def _following(rng, shape):
    """Arms that follow the seed unlike one another, so that their differences depend on it."""
    return _normal(rng, shape) + SD * np.array([0.0, 1.0, 2.0, 4.0])[:, None] * rng.normal(size=(shape[0], 1, shape[2]))


def _of_the_article(rng, shape):
    """The four arms of the article with the same seeds, each moved to the same mean."""
    arms = RUNS - RUNS.mean(axis=0) + 0.85
    return arms[rng.integers(len(arms), size=(shape[0], shape[2]))].transpose(0, 2, 1)


DISTRIBUTIONS = {
    "normal": _normal,
    "1 in 50 fails": functools.partial(_failing, 0.02),
    "1 in 10 fails": functools.partial(_failing, 0.1),
    "1 in 10 of the last arm fails": _last_failing,
    "1 seed in 10 fails in all arms": _failing_together,
    "arms follow the seed unlike": _following,
    "skewed": _skewed,
    "heavy tails (t, 3)": _heavy_tailed,
    "the article's arms": _of_the_article,
}
OFTEN_FAILING = {"2 in 10 fail": functools.partial(_failing, 0.2), "3 in 10 fail": functools.partial(_failing, 0.3)}
"""Arms of which most comparisons say nothing."""
_ALL = DISTRIBUTIONS | OFTEN_FAILING
LOSSES = dict.fromkeys(_ALL, 0.0) | {"1 in 10 of the last arm fails": 0.1 * (0.94 - 0.76)}
"""What the failures of the last arm take from the mean of all its runs, more than those of the first from its own."""


def draw(name, n, num_comparisons, gains=(0.0, 0.0, 0.0, 0.0), seed=0):
    """Values of comparisons of n seeds, float [comparison, arm, seed]; each seed moves all arms alike."""
    rng = np.random.default_rng([seed, n])
    of_seed = rng.normal(0.0, SD, (num_comparisons, 1, n))
    return _ALL[name](rng, (num_comparisons, 4, n)) + of_seed + np.array(gains)[:, None]


def judge(y, knows_failures=True):
    """Judge each effect as the package does: p (NaN: nothing is said), mean, half its interval, [comparison, effect].

    Without `knows_failures`, every seed counts, as in a plain t test.
    """
    has_failed = failed(y) if knows_failures else np.zeros(y.shape, bool)
    p, mean, half = (np.full((len(y), len(EFFECTS)), np.nan) for _ in range(3))
    for e, weights in enumerate(EFFECTS):
        arms = weights != 0
        out = has_failed[:, arms].any(axis=1)
        is_said = (has_failed[:, arms].mean(axis=2) <= LARGEST_SHARE).all(axis=1)
        differences = np.einsum("a,can->cn", weights, y)
        for num_out in np.unique(out.sum(axis=1)):
            rows = is_said & (out.sum(axis=1) == num_out)
            n = y.shape[2] - num_out
            if n < FEWEST_SEEDS or not rows.any():
                continue
            kept = differences[rows][~out[rows]].reshape(-1, n)
            p[rows, e], mean[rows, e] = p_value(kept), kept.mean(axis=1)
            half[rows, e] = critical_t(n) * standard_error(kept)
    return p, mean, half


def corrected(p):
    """Correct p values over what is said, as the package does."""
    found = np.full(p.shape, np.nan)
    for said in itertools.product((False, True), repeat=p.shape[1]):
        rows = (~np.isnan(p) == said).all(axis=1)
        if any(said) and rows.any():
            found[np.ix_(rows, said)] = holm(p[np.ix_(rows, said)])
    return found


def rates(name, n, num_comparisons=20_000, gain=0.0, knows_failures=True, seed=0):
    """How often something is shown; of the last arm over the first: its interval holds, its sign is wrong, no verdict.

    gain: what a typical run of the last arm has more than one of the others.
    """
    y = draw(name, n, num_comparisons, (0, 0, 0, gain), seed)
    p, mean, half = judge(y, knows_failures)
    shown = corrected(p) <= ALPHA
    said = ~np.isnan(p[:, BOTH])
    truth = gain if knows_failures else gain - LOSSES[name]
    holds = np.abs(mean - truth) <= half
    wrong = shown[:, BOTH] & (np.sign(mean[:, BOTH]) != np.sign(gain))
    return {
        "any shown": shown.any(axis=1).mean(),
        "interval holds": holds[said, BOTH].mean(),
        "wrong sign": wrong.mean(),
        "silent": 1 - said.mean(),
    }


def called_equal(name, n, margin, num_comparisons=20_000, seed=0):
    """How often arms are called less than a margin apart whose typical runs differ by just the margin."""
    p, mean, half = judge(draw(name, n, num_comparisons, (0, 0, 0, margin), seed))
    level = ALPHA / 4  # That of four tests of which none shows anything; those in which one does have a larger one.
    half *= critical_t(n, 2 * level) / critical_t(n)
    is_open = corrected(p)[:, BOTH] > ALPHA
    return (is_open & (np.abs(mean[:, BOTH]) + half[:, BOTH] < margin)).mean()


def main():
    """Print the table."""
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    of_each = "any shown | interval holds | wrong sign"
    print(f"| seeds of an arm | n | on all seeds: {of_each} | on typical runs: {of_each} | no verdict | called equal |")
    for name, n in itertools.product(_ALL, (5, 8, 11, 20)):
        cells = [name, str(n)]
        for knows_failures in (False, True):
            equal = rates(name, n, num, 0.0, knows_failures)
            better = rates(name, n, num, 0.005, knows_failures)
            cells += [f"{100 * equal[key]:.1f}%" for key in ("any shown", "interval holds")]
            cells += [f"{100 * better['wrong sign']:.1f}%"]
        cells += [f"{100 * share:.1f}%" for share in (equal["silent"], called_equal(name, n, 0.005, num))]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
