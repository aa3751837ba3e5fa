"""The process group: collectives, the gathered batch, and the sharding of classes."""
