"""A trained model as a service: images to embeddings, nearest classes, and nearest images of a gallery."""
