"""Run folders as a training writes them, with figures that a test chooses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CLASSES = {"pfc": "PartialFC", "full": "FullFC", "ffc": "FFC", "forest": "HashingForest"}
BATCH = 10


def made_run(
    folder: Path,
    head: str = "pfc",
    *,
    seed: int = 0,
    rank1: float | None = 0.8,
    steps: int = 100,
    seconds_per_step: float = 0.1,
    status: str = "finished",
    num_classes: int = 1000,
    options: Mapping[str, Any] | None = None,
    figures: Mapping[str, float] | None = None,
) -> Path:
    """Write a run that was evaluated ten times, with rank-1 rising linearly from 0; `rank1=None` for no evaluation."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "seed": seed,
        "batch_size": BATCH,
        "backbone": "tiny",
        "head_name": head,
        "head": {"_target_": f"heads.{head}.{CLASSES.get(head, head.title())}"},
        "trainer": {"max_steps": steps, "accumulate_grad_batches": 1},
        "logger": {"wandb": {"name": f"run {seed}"}},
    }
    for name, value in (options or {}).items():
        OmegaConf.update(made := OmegaConf.create(config), name, value, force_add=True)
        config = OmegaConf.to_container(made)  # type: ignore[assignment]
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    lines = ["step,time,name,value"]
    for step in range(steps // 10, steps + 1, steps // 10):
        lines.append(f"{step},0,train/seconds,{step * seconds_per_step}")
        lines.append(f"{step},0,train/loss,{10 - step / steps}")
        if rank1 is not None:
            lines.append(f"{step},0,val/rank1,{rank1 * step / steps}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    summary: dict[str, Any] = {
        "status": status,
        "head": head,
        "num_classes": num_classes,
        "seed": seed,
        "steps": steps,
        "train/loss": 9.0,
        "throughput/images_per_second": BATCH / seconds_per_step,
        "head/step_ms": 5.0 + seed,
        "memory/head_bytes": 2**20 * (1 if head == "ffc" else 8),
        "memory/peak_bytes": 2**30,
        **(figures or {}),
    }
    if rank1 is not None:
        summary["val/rank1"] = rank1
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
