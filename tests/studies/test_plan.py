import dataclasses
import hashlib
import json

import pytest

from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.plan import Plan
from helpers.made_up_runs import ARMS

PLAN = Plan(ARMS, range(11), 15, Measure(margin=0.005), looks=2)


def test_seeds_are_run_in_equal_parts_between_the_looks():
    assert [list(seeds) for seeds in PLAN.seeds_between_looks()] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert PLAN.alpha == 0.0294
    once = dataclasses.replace(PLAN, looks=1)
    assert (once.seeds_between_looks(), once.alpha) == ([range(11)], 0.05)


@pytest.mark.parametrize(
    ("looks", "message"),
    [
        (0, "looks is 0; it must be at least 1"),
        (6, "looks is 6; levels are known for at most 5 looks"),
        (3, "3 looks at 11 seeds would come before a verdict is possible; take 12 seeds at least, or fewer looks"),
    ],
)
def test_looks_that_cannot_be_are_refused(looks, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, looks=looks)


def test_the_plan_is_kept_with_its_digest_and_another_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    words = PLAN.keep(path, {"rates": "given"})
    content = json.loads(path.read_text())
    assert content["seeds"] == list(range(11))
    assert content["measure"]["margin"] == 0.005
    assert content["level of each look"] == 0.0294
    assert content["failures"].startswith("A run has failed if it diverged, or if it lies below a gap")
    bounded = dataclasses.replace(PLAN, measure=Measure(failure_bound=0.9)).to_json()["failures"]
    assert bounded == "A run has failed if it diverged, or if its validation accuracy is worse than 0.9."
    assert f"(sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…)" in words
    assert "11 seeds, 2 looks at a level of 0.0294, a margin of 0.005" in words
    before = path.read_bytes()
    assert PLAN.keep(path, {"rates": "given"}) == words
    with pytest.raises(ValueError, match=r"before the first run, with another plan: seeds None, now 11\. Go on"):
        dataclasses.replace(PLAN, seeds=range(12)).keep(path, {"rates": "given"})
    with pytest.raises(ValueError, match="another plan: rates given, now tuned"):
        PLAN.keep(path, {"rates": "tuned"})
    assert path.read_bytes() == before
