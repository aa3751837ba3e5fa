"""Heads outside of `torch.compile`, which cannot trace random draws by key, collectives and streamed chunks."""

import torch
from torch import nn

METHODS = ("forward", "topk")
done: set[type[nn.Module]] = set()


def run_uncompiled(head_class: type[nn.Module]) -> None:
    """Make the methods of a class run uncompiled inside a compiled function.

    The first instance of a class calls this function; the definition of the class does not. The reason is that
    `torch.compiler.disable` imports the compiler, which takes seconds, and importing heads should not wait for it.
    """
    if head_class not in done:
        done.add(head_class)
        for name in METHODS:
            method = getattr(head_class, name)
            setattr(head_class, name, torch.compiler.disable(method, reason="heads run outside the compiled graph"))
