"""File formats of images, pairs and templates."""
