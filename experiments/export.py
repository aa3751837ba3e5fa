"""`python -m experiments.export checkpoint=RUN format=onnx`: a model for elsewhere, checked against this one.

`onnx` runs in onnxruntime, `pt2` is torch.export's own format, and `safetensors` holds the class centers. How images
become the input is in the metadata of the file, and is checked too; the batch may be of any size.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.export")
    from .command_line.arguments import check_or_exit

    check_or_exit("export")


import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.conversion.writers import write_names
from data.options import absolute, several
from data.sets.image_source import images_at

from .cli import command, needed
from .export_check import Run, check_preprocessing
from .launching.processes import Processes
from .models.model import Model
from .models.trained import READ, Trained, model_of
from .tables import console, shown

FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "centers.safetensors"}
METADATA = "headcount.json"  # of a .pt2
CHECKED = 16  # images
BATCHES = (1, 2, 5)  # sizes of random batches
TOLERANCE = 1e-4
LARGEST = 2**30  # bytes of class centers in a model


class Exported(nn.Module):
    """What is exported: (N, *shape) float -> embeddings (N, D), and scores (N, C) if there are rows.

    Args:
        rows: of the classes (C, width); None for embeddings only.
        unit: whether scores are cosines; otherwise the rows' last column is a bias.
    """

    def __init__(self, backbone: nn.Module, rows: Tensor | None, unit: bool):
        super().__init__()
        self.backbone, self.unit = backbone, unit
        self.register_buffer("rows", None if rows is None else normalize(rows) if unit else rows)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        embeddings: Tensor = self.backbone(images)
        rows = self.rows
        if rows is None:
            return embeddings
        assert isinstance(rows, Tensor)
        if self.unit:
            return embeddings, normalize(embeddings) @ rows.T
        return embeddings, embeddings @ rows[:, :-1].T + rows[:, -1]


def export(config: DictConfig, folder: Path) -> None:
    """Raises ValueError for options that do not fit, and where the exported model computes something else."""
    needed(config, "checkpoint")
    if config.format not in FILES:
        raise ValueError(f"format={config.format}: must be one of {', '.join(FILES)}")
    target = Path(absolute(str(config.target))) if config.target else folder / FILES[config.format]
    if target.suffix != Path(FILES[config.format]).suffix:
        raise ValueError(f"target={target}: must end in {Path(FILES[config.format]).suffix}")
    if target.exists():
        raise ValueError(f"target={target}: is there already; remove it or name another")
    if not target.parent.is_dir():
        raise ValueError(f"target={target}: there is no folder {target.parent}")
    if config.format == "safetensors":
        for name in ("scores", "source", "tolerance"):
            if config[name]:
                raise ValueError(f"{name}={config[name]}: is an option of format=onnx and format=pt2")
    tolerance = TOLERANCE if config.tolerance is None else config.tolerance
    if not isinstance(tolerance, int | float):
        raise ValueError(f"tolerance={tolerance}: a number is needed")
    trained = Trained(config.checkpoint, trust=several(config.trust))
    print(trained, flush=True)
    if config.format == "safetensors":
        write_centers(trained, target)
        return
    rows = rows_of(trained) if config.scores else None
    exported = Exported(trained.backbone(), rows, unit=rows is not None and trained.normalize).eval()
    aside = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        about = metadata(trained, config.scores)
        run = WRITERS[config.format](exported, trained.shape, about, aside)
        model = model_of(trained, Processes(0, 1, torch.device("cpu")), "32-true")
        differences = compare(exported, run, inputs(config, trained, model))
        tell(differences)
        for what, (difference, value) in differences.items():
            if not difference <= tolerance * max(1, value):  # float32 rounds to a share; neither where it is NaN
                raise ValueError(
                    f"tolerance={tolerance}: the exported model differs by {difference:.2g} from torch, on values up "
                    f"to {value:.3g} ({what}); nothing was written"
                )
        if trained.preprocessing is not None:
            check_preprocessing(run, trained.preprocessing, about)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    console().print(f"{target}: {target.stat().st_size:,} bytes", soft_wrap=True, highlight=False)


def metadata(trained: Trained, scores: bool) -> dict[str, str]:
    """As text: how images become the input, and what comes out. JSON where it is no word."""
    told: dict[str, Any] = {"embedding_size": trained.config.embedding_size, "input_shape": list(trained.shape)}
    if trained.preprocessing is not None:
        told |= asdict(trained.preprocessing)
        told["color"] = "RGB" if trained.preprocessing.channels == 3 else "grey"
        told |= {"resampling": "bilinear", "antialias": True}  # of images of another size, over all of their pixels
    if scores and len(trained.class_names):
        told["class_names"] = list(trained.class_names)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}


def rows_of(trained: Trained) -> Tensor:
    """All class centers (C, width)."""
    _needs_centers(trained, "scores=true")
    width = trained.stored.tensors[trained.ROWS].size[1]
    if 4 * trained.num_classes * width > LARGEST:
        raise ValueError(
            f"scores=true: {trained.num_classes:,} class centers are more than a model should hold; "
            "format=safetensors writes them to a file of their own"
        )
    return torch.cat([rows.float() for _, rows in trained.rows()])


def _needs_centers(trained: Trained, option: str) -> None:
    if not trained.num_classes:
        raise ValueError(f"{option}: the head of this model keeps no class centers")


def to_onnx(exported: Exported, shape: tuple[int, ...], about: Mapping[str, str], path: Path) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"format=onnx: {error.name} is not installed; pip install -e '.[export]'") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators of packages that are not there
    for name in ("onnxscript", "onnx_ir"):  # of each thing that they fold or remove
        logging.getLogger(name).setLevel(logging.WARNING)
    outputs = ["embeddings", *(["scores"] if exported.rows is not None else [])]
    made = torch.onnx.export(
        exported,
        (torch.zeros(2, *shape),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=outputs,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(about)
    made.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(outputs, {"images": inputs.numpy()})


def to_pt2(exported: Exported, shape: tuple[int, ...], about: Mapping[str, str], path: Path) -> Run:
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1)
        traced = torch.export.export(exported, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(traced, path, extra_files={METADATA: json.dumps(about)})
    module = torch.export.load(path).module()

    def run(inputs: Tensor) -> list[NDArray[np.float32]]:
        found = module(inputs)
        return [each.detach().numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run


WRITERS: dict[str, Callable[[Exported, tuple[int, ...], Mapping[str, str], Path], Run]] = {
    "onnx": to_onnx,
    "pt2": to_pt2,
}


def inputs(config: DictConfig, trained: Trained, model: Model) -> dict[str, Tensor]:
    """Batches to compare on, by what they are."""
    generator = torch.Generator().manual_seed(0)
    found = {f"random, batch of {n}": torch.randn(n, *trained.shape, generator=generator) for n in BATCHES}
    if config.source is not None:
        name, (source, prepare) = "images", model.view(images_at(config.source, option="source"))
    else:
        try:
            data = model.data()
        except ValueError as error:
            print(f"Checked on random inputs only: its own data are not here ({error}); source=PATH", flush=True)
            return found
        name, source, prepare = "its own data", (data.heldout or data.train).source, data.prepare
    found[name] = prepare(source.read(np.arange(min(CHECKED, len(source)))))
    return found


def compare(exported: Exported, run: Run, batches: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Of each batch and output: the largest difference, and the largest value."""
    differences = {}
    for name, batch in batches.items():
        with torch.no_grad():
            expected = exported(batch)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for output, ours, theirs in zip(("embeddings", "scores"), expected, run(batch), strict=False):
            difference = np.abs(ours.numpy() - theirs).max()
            differences[f"{output}, {name}"] = (float(difference), float(ours.abs().max()))
    return differences


def tell(differences: Mapping[str, tuple[float, float]]) -> None:
    table = Table("compared with torch", "largest difference", "largest value", title_justify="left")
    for name, (difference, value) in differences.items():
        table.add_row(name, f"{difference:.2g}", f"{value:.3g}")
    console().print(table)


def write_centers(trained: Trained, target: Path) -> None:
    """`centers` (C, D), and `bias` (C,) where there is one, in float32, a block at a time; their names go into a
    .classes.txt beside."""
    _needs_centers(trained, "format=safetensors")
    names = target.with_suffix(".classes.txt")
    if names.exists():
        raise ValueError(f"target={target}: there is {names.name} already; remove it or name another")
    count, width = trained.num_classes, trained.config.embedding_size
    has_bias = not trained.normalize
    sizes = {"centers": 4 * count * width, **({"bias": 4 * count} if has_bias else {})}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata(trained, False)}}
    begin = 0
    for name, size in sizes.items():
        shape = [count, width] if name == "centers" else [count]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # tensors begin at a multiple of 8
    aside = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        with aside.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for start, rows in shown(trained.rows(), "Class centers", -(-count // READ)):
                block = rows.float().numpy()
                file.seek(8 + len(raw) + 4 * start * width)
                file.write(np.ascontiguousarray(block[:, :width]).tobytes())
                if has_bias:
                    file.seek(8 + len(raw) + sizes["centers"] + 4 * start)
                    file.write(np.ascontiguousarray(block[:, width]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        write_names(names, trained.class_names)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    console().print(f"{target}: {count:,} class centers of {width} numbers", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    command("export", export)
