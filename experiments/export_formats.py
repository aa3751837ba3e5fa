"""The formats of an exported model: ONNX, and torch.export's own .pt2. Both accept a batch of any size."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from .export_check import Run

METADATA = "headcount.json"  # file in a .pt2


class Exported(nn.Module):
    """The exported computation: (N, *shape) float -> embeddings (N, D), and scores (N, C) if there are rows.

    Args:
        rows: rows of the classes (C, width), or (C, K, width) if the nearest of K counts; None for embeddings only.
        unit: whether scores are cosines; otherwise the last column of the rows is a bias.
    """

    def __init__(self, backbone: nn.Module, rows: Tensor | None, unit: bool):
        super().__init__()
        self.backbone, self.unit = backbone, unit
        self.register_buffer("rows", None if rows is None else normalize(rows, dim=-1) if unit else rows)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        embeddings: Tensor = self.backbone(images)
        rows = self.rows
        if rows is None:
            return embeddings
        assert isinstance(rows, Tensor)
        lines = rows.flatten(0, -2)
        if self.unit:
            scores = normalize(embeddings) @ lines.T
        else:
            scores = embeddings @ lines[:, :-1].T + lines[:, -1]
        return embeddings, scores if rows.ndim == 2 else scores.unflatten(1, rows.shape[:2]).amax(2)


def to_onnx(exported: Exported, shape: tuple[int, ...], metadata: Mapping[str, str], path: Path) -> Run:
    """Write a model as ONNX, and return a function that runs the file with onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"format=onnx needs {error.name}; pip install -e '.[export]'") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about operators of packages not installed
    for name in ("onnxscript", "onnx_ir"):  # they log every node that they fold or remove
        logging.getLogger(name).setLevel(logging.WARNING)
    outputs = ["embeddings", *(["scores"] if exported.rows is not None else [])]
    program = torch.onnx.export(
        exported,
        (torch.zeros(2, *shape),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=outputs,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(outputs, {"images": inputs.numpy()})


def to_pt2(exported: Exported, shape: tuple[int, ...], metadata: Mapping[str, str], path: Path) -> Run:
    """Write a model as .pt2, and return a function that runs the file with torch."""
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(exported, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
    module = torch.export.load(path).module()

    def run(inputs: Tensor) -> list[NDArray[np.float32]]:
        outputs = module(inputs)
        return [output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


WRITERS: dict[str, Callable[[Exported, tuple[int, ...], Mapping[str, str], Path], Run]] = {
    "onnx": to_onnx,
    "pt2": to_pt2,
}
