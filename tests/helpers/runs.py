"""Callbacks that break a run off, or look at it."""

import keras

from clr_loop.runs.fit import StopRun


class CrashError(Exception):
    pass


class BatchEnd(keras.callbacks.Callback):
    """Calls a function of the number of batches visited in the run, at the end of each block."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_begin(self, epoch, logs=None):
        self.before = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        self.function(self.before + batch + 1)


def crash_after(position):
    """Breaks a run off in the first block that goes beyond a position."""

    def crash(batches_done):
        if batches_done > position:
            raise CrashError

    return BatchEnd(crash)


def stop_at(position):
    """Asks a run to stop in the first block that reaches a position."""

    def stop(batches_done):
        if batches_done >= position:
            raise StopRun

    return BatchEnd(stop)
