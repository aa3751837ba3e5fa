"""`python -m experiments.export checkpoint=RUN format=onnx`: export a model, and compare the file with the model.

`onnx` runs in onnxruntime, `pt2` is torch.export's own format, and `safetensors` holds the class centers. The file's
metadata states how images become the input, which is compared too. The batch may have any size.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.export")
    from .command_line.arguments import check_or_exit

    check_or_exit("export")


import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from data.options import absolute, several
from data.sets.image_source import images_at

from .cli import command, needed
from .export_centers import write_centers
from .export_check import Run, check_preprocessing
from .export_formats import WRITERS, Exported
from .launching.processes import Processes
from .models.model import Model
from .models.trained import Trained, model_of
from .tables import console

FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "centers.safetensors"}
CHECKED = 16  # images
BATCHES = (1, 2, 5)  # sizes of random batches
TOLERANCE = 1e-4
MAX_CENTERS_BYTES = 2**30  # largest size of class centers in a model


def export(config: DictConfig, folder: Path) -> None:
    """Export a model, or its class centers.

    Raises:
        ValueError: an option does not fit, or the exported model computes something else.
    """
    target, tolerance = check_options(config, folder)
    trained = Trained(config.checkpoint, trust=several(config.trust))
    print(trained, flush=True)
    metadata = metadata_of(trained, config.scores)
    if config.format == "safetensors":
        _check_centers(trained, "format=safetensors")
        write_centers(trained, metadata, target)
        return
    rows = rows_of(trained) if config.scores else None
    exported = Exported(trained.backbone(), rows, unit=rows is not None and trained.normalize).eval()
    aside = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        run = WRITERS[config.format](exported, trained.shape, metadata, aside)
        model = model_of(trained, Processes(0, 1, torch.device("cpu")), "32-true")
        check_outputs(compare(exported, run, inputs(config, trained, model)), tolerance)
        if trained.preprocessing is not None:
            check_preprocessing(run, trained.preprocessing, metadata)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    console().print(f"{target}: {target.stat().st_size:,} bytes", soft_wrap=True, highlight=False)


def check_options(config: DictConfig, folder: Path) -> tuple[Path, float]:
    """Return the path of the file and the tolerance. Raise ValueError for options that do not fit."""
    needed(config, "checkpoint")
    if config.format not in FILES:
        raise ValueError(f"format={config.format} must be one of {', '.join(FILES)}")
    target = Path(absolute(str(config.target))) if config.target else folder / FILES[config.format]
    suffix = Path(FILES[config.format]).suffix
    if target.suffix != suffix:
        raise ValueError(f"target={target} must end in {suffix} for format={config.format}")
    if target.exists():
        raise ValueError(f"target={target} exists already; remove it or give another name")
    if not target.parent.is_dir():
        raise ValueError(f"target={target} cannot be written: the folder {target.parent} does not exist")
    if config.format == "safetensors":
        for name in ("scores", "source", "tolerance"):
            if config[name]:
                raise ValueError(f"{name}={config[name]} applies to format=onnx and format=pt2 only; remove it")
    tolerance = TOLERANCE if config.tolerance is None else config.tolerance
    if not isinstance(tolerance, int | float):
        raise ValueError(f"tolerance={tolerance} must be a number; {TOLERANCE} is the default")
    return target, tolerance


def metadata_of(trained: Trained, scores: bool) -> dict[str, str]:
    """Return as strings how images become the input, and what the outputs are. Values other than words are JSON."""
    values: dict[str, Any] = {"embedding_size": trained.config.embedding_size, "input_shape": list(trained.shape)}
    if trained.preprocessing is not None:
        values |= asdict(trained.preprocessing)
        values["color"] = "RGB" if trained.preprocessing.channels == 3 else "grey"
        values |= {"resampling": "bilinear", "antialias": True}  # for images of another size
    if scores and len(trained.class_names):
        values["class_names"] = list(trained.class_names)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def rows_of(trained: Trained) -> Tensor:
    """Return all class centers, (C, width) or (C, K, width); a bias in the last column if it is part of the scores."""
    _check_centers(trained, "scores=true")
    if 4 * trained.num_classes * trained.rows_per_class * trained.width > MAX_CENTERS_BYTES:
        raise ValueError(
            f"scores=true cannot be used with {trained.num_classes:,} class centers, which are too large for a model "
            "file; format=safetensors writes them to a file of their own"
        )
    width = trained.config.embedding_size if trained.normalize else trained.width
    return torch.cat([rows[..., :width].float() for _, rows in trained.rows_by_class()])


def _check_centers(trained: Trained, option: str) -> None:
    if not trained.num_classes:
        raise ValueError(f"{option} needs class centers, and the head of this model has none")


def inputs(config: DictConfig, trained: Trained, model: Model) -> dict[str, Tensor]:
    """Return batches to compare on, by their description: random ones, and real examples if there are any."""
    generator = torch.Generator().manual_seed(0)
    batches = {f"random, batch of {n}": torch.randn(n, *trained.shape, generator=generator) for n in BATCHES}
    if config.source is not None:
        name, (source, prepare) = "images", model.view(images_at(config.source, option="source"))
    else:
        try:
            data = model.data()
        except ValueError as error:
            print(
                f"Compared on random inputs only, because the model's own data are missing ({error}); source=PATH "
                "compares on images",
                flush=True,
            )
            return batches
        name, source, prepare = "its own data", (data.heldout or data.train).source, data.prepare
    batches[name] = prepare(source.read(np.arange(min(CHECKED, len(source)))))
    return batches


def compare(exported: Exported, run: Run, batches: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the largest difference and the largest value of each output on each batch."""
    differences = {}
    for name, batch in batches.items():
        with torch.no_grad():
            expected = exported(batch)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for output, ours, theirs in zip(("embeddings", "scores"), expected, run(batch), strict=False):
            difference = np.abs(ours.numpy() - theirs).max()
            differences[f"{output}, {name}"] = (float(difference), float(ours.abs().max()))
    return differences


def check_outputs(differences: Mapping[str, tuple[float, float]], tolerance: float) -> None:
    """Print the differences as a table. Raise ValueError for one above the tolerance."""
    table = Table("compared with torch", "largest difference", "largest value", title_justify="left")
    for name, (difference, value) in differences.items():
        table.add_row(name, f"{difference:.2g}", f"{value:.3g}")
    console().print(table)
    for name, (difference, value) in differences.items():
        # Relative to large values, because float32 rounds relatively; a NaN fails too.
        if not difference <= tolerance * max(1, value):
            raise ValueError(
                f"tolerance={tolerance} is exceeded: the exported model differs from torch by {difference:.2g}, on "
                f"values up to {value:.3g} ({name}); nothing was written"
            )


if __name__ == "__main__":
    command("export", export)
