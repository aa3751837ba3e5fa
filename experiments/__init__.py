"""The commands: `python -m experiments.NAME`."""

INTERRUPTED, TERMINATED = 130, 143  # exit status of a run ended by Ctrl-C, by SIGTERM
