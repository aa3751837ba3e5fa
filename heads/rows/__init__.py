"""Class centers: rows, stores, row optimizers and pending gradients."""
