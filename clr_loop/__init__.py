"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

The rooms, from the ground up; each imports only what stands before it:

    schedule_base   what every schedule has: the call, momentum, JSON, the checks
    cyclic          cycles in straight lines: step → learning rate, pure NumPy
    schedules       all schedules: those, 1cycle, warm restarts, ramps; joining, reading back
    description     what a schedule will do in a run, and what in it may waste the run
    lengths         `2000st`, `2ep`, `30%` → steps
    keras_schedule  a schedule for a Keras optimizer
    keras_callback  the CLR repository's callback for Keras 3
    named           a function by its name, `package.module:function`
    data            named datasets as uint8 arrays, the order of an epoch
    models          named Keras models, seeded
    layers          what the loop must know of a model's layers
    momentum        a momentum that changes inside a compiled step
    workers         the workers of a run on several machines, before TensorFlow knows of them
    step            what one step does with its batch
    loop            the compiled training block: `TrainLoop`
    streaming       a `TrainLoop` fed by a `tf.data.Dataset`
    scaling         strategies and precisions
    feeding         which feed a run takes, and the loop with it
    run_files       a run directory: its lock, its settings, its CSV files
    checkpoints     the whole state of a run on disk, verified
    timing          a stopwatch
    profiling       a window of steps under TensorFlow's profiler
    summaries       arrays → TensorBoard events
    results         what a run gave
    plots           results → pictures
    records         all that a run leaves behind, and the way back to a checkpoint
    settings        what a run depends on, and what in it has changed
    resuming        how a run goes on, and with which schedule
    identity        whether two runs are the same to the last bit
    suggestions     the curves of an LR range test → base_lr and max_lr, pure NumPy
    training        `fit`: epochs, validation, timing and records around a `TrainLoop`
    range_test      a sweep of rates that leaves no trace
    tables          Markdown tables
    comparison      arms × seeds → runs → effects with their spread
    report          a comparison in tables, words and pictures

Only `Schedule.describe`, `Schedule.as_keras` and `TrainLoop.from_dataset` reach upward, when called, to the rooms that
know how. Importing
`clr_loop`, `clr_loop.schedules`, `clr_loop.description` or `clr_loop.plots` does not import TensorFlow.
"""

__version__ = "0.1.0"
