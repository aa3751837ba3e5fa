"""Keeps `torch.compile` from tracing heads: keyed draws, collectives and streams of chunks are no graph."""

import torch
from torch import nn

METHODS = ("forward", "topk")
done: set[type[nn.Module]] = set()


def run_uncompiled(head_class: type[nn.Module]) -> None:
    """Make the methods of a class run as they are inside a compiled function.

    Called when the first head of a class is made and not when the class is: `torch.compiler.disable` imports the
    compiler, which takes seconds, and those who only import heads should not wait for it.
    """
    if head_class not in done:
        done.add(head_class)
        for name in METHODS:
            method = getattr(head_class, name)
            setattr(head_class, name, torch.compiler.disable(method, reason="heads run outside the compiled graph"))
