"""The export of class centers to a safetensors file."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.conversion.writers import write_names

from .models.trained import READ, Trained
from .tables import console, shown


def write_centers(trained: Trained, metadata: Mapping[str, str], target: Path) -> None:
    """Write float32 `centers` (C, D), `bias` (C,) if there is one, and the class names to a .classes.txt next to it.

    Of K rows a class, `centers` is (C, K, D) and `bias` (C, K).

    Rows are first written to temporary files and mapped, so that centers larger than memory can be exported. The disk
    must have room for them twice.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("format=safetensors needs safetensors; pip install -e '.[export]'") from None
    names = target.with_suffix(".classes.txt")
    if names.exists():
        raise ValueError(f"target={target} cannot be written: {names.name} exists already; remove it")
    count, width = trained.num_classes, trained.config.embedding_size
    aside = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        with tempfile.TemporaryFile(dir=target.parent) as centers, tempfile.TemporaryFile(dir=target.parent) as bias:
            for _, rows in shown(trained.rows_by_class(), "Class centers", -(-count // READ)):
                centers.write(rows[..., :width].float().contiguous().numpy().tobytes())
                bias.write(rows[..., width:].float().contiguous().numpy().tobytes())  # empty without a bias
            of_classes = (count,) if trained.rows_per_class == 1 else (count, trained.rows_per_class)
            tensors = {"centers": _mapped(centers).view(*of_classes, width)}
            if trained.width > width:
                tensors["bias"] = _mapped(bias).view(of_classes)
            save_file(tensors, aside, {"format": "pt", **metadata})
        write_names(names, trained.class_names)
        os.replace(aside, target)
    except SafetensorError as error:
        raise ValueError(f"target={target} cannot be written ({error}); make room or give another path") from error
    finally:
        aside.unlink(missing_ok=True)
    console().print(f"{target}: {count:,} class centers of {width} numbers", soft_wrap=True, highlight=False)


def _mapped(file: BinaryIO) -> Tensor:
    """Return the float32 numbers of a file without reading them into memory."""
    file.flush()
    return torch.from_numpy(np.memmap(file, np.float32, "r+"))
