"""A training: its LightningModule and callbacks, and their assembly from a config."""
