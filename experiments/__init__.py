"""The commands: `python -m experiments.NAME`."""

INTERRUPTED = 130  # exit status of a run ended by Ctrl-C
