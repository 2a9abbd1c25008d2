"""What the seed of a run decides: the initial weights, and the order of the data."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras

from clr_loop.arguments import checked_whole
from clr_loop.loop.own_step import has_own
from clr_loop.loop.state import values_of
from clr_loop.loop.trial import variables_with_state

MakeModel = Callable[[int], keras.Model]
"""seed → a fresh compiled model."""


def checked_seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    """Return seeds; a number of them means 0, 1, 2 and so on."""
    return range(checked_whole("seeds", seeds)) if isinstance(seeds, int) else seeds


class Seeded:
    """The function seed → model of one that takes nothing, or an argument `seed`.

    It is called after `keras.utils.set_random_seed(seed)`, so weights without a seed of their own follow from this one.

    Calling it raises:
        TypeError: if the function returns something else than a model.
        ValueError: if it returns the same model again.

    Raises:
        TypeError: if the function is a model itself.
    """

    def __init__(self, build_model: Callable[..., keras.Model]) -> None:
        if isinstance(build_model, keras.Model):
            raise TypeError(
                f"build_model is the model {build_model.name}; each seed needs fresh weights, so give a function that "
                "makes and compiles a model and returns it."
            )
        self._build_model = build_model
        self._takes_seed = "seed" in inspect.signature(build_model).parameters
        self._made: weakref.WeakSet[keras.Model] = weakref.WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return Seeded, (self._build_model,)  # Models that were made here do not travel.

    def __call__(self, seed: int) -> keras.Model:
        """Return a fresh model."""
        keras.utils.set_random_seed(seed)
        model = self._build_model(seed=seed) if self._takes_seed else self._build_model()
        if not isinstance(model, keras.Model):
            raise TypeError(f"build_model returned {model!r}; it must return a compiled keras.Model.")
        if model in self._made:
            raise ValueError(f"build_model returned the model {model.name} twice; make a new one at each call.")
        self._made.add(model)
        return model


def initial_state(make_model: MakeModel, seed: int) -> dict[str, Any]:
    """Return what a seed decides in the `Snapshot` of a loop at step 0; the model itself is not kept.

    Some optimizers, such as ScheduleFreeAdamW, are built with a copy of the weights, so their state is decided, too.
    """
    model = make_model(seed)
    state = {"model": values_of(model.variables), "seed": seed}
    if has_own(model, "train_step"):  # Its optimizers are its own affair.
        return state
    with model.distribute_strategy.scope():
        model.optimizer.build(variables_with_state(model))
    return {**state, "optimizer": values_of(model.optimizer.variables)}
