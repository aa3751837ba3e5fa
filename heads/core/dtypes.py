"""Number formats and their names in configurations."""

import torch

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def named(option: str, value: torch.dtype | str) -> torch.dtype:
    """Return the torch dtype of a name or of a dtype.

    Raises:
        ValueError: any other value; the message names the option.
    """
    dtype = NAMES.get(value) if isinstance(value, str) else value
    if dtype not in NAMES.values():
        raise ValueError(f"{option}={value} must be one of {', '.join(NAMES)}")
    assert dtype is not None
    return dtype
