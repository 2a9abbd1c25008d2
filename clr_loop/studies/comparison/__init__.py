"""Arms of runs, their measures and effects."""
