"""Start of the processes of a run on its machines."""
