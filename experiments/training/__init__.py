"""A training: the LightningModule and what goes with it, put together by `experiments.train`."""
