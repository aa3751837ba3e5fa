"""Models: built from a config, read from a checkpoint, evaluated and used."""
