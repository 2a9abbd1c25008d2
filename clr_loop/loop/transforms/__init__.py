"""The wrappers around the heart of a step, a file each; `step.make_step` puts them together.

Most take a function from a batch to its `Result` and return one of the same kind. The others do so with the update.
"""
