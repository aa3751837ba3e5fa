"""The commands: `python -m experiments.NAME`."""

INTERRUPTED, TERMINATED = 130, 143  # exit status of a run ended by Ctrl-C, by SIGTERM
# Statuses in summary.json of trainings that ended as planned, with an evaluation and a checkpoint.
COMPLETE = ("finished", "out of time")
SWEEPS = ("-m", "--multirun")  # flags of experiments.run
