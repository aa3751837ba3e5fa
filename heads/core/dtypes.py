"""Number formats by the names that configurations use."""

import torch

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def named(option: str, value: torch.dtype | str) -> torch.dtype:
    """`value` as a torch dtype; a ValueError names the option."""
    found = NAMES.get(value) if isinstance(value, str) else value
    if found not in NAMES.values():
        raise ValueError(f"{option}={value}: must be one of {', '.join(NAMES)}")
    assert found is not None
    return found
