"""One training, as one set of processes: `python -m experiments.train RUN_FOLDER`.

`experiments.run` starts it. It reads the run's resolved config.yaml and knows nothing of sweeps.
"""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType

import lightning as L
import torch
import wandb
from omegaconf import DictConfig, OmegaConf

from . import INTERRUPTED
from .build import build
from .checkpoint import Checkpoints, SingleDevice, find, step_of
from .evaluation import Evaluation
from .logs import MetricsCSV, wandb_logger
from .module import HeadModule
from .progress import ProgressBar
from .recorder import Recorder, print_summary

PRECISIONS = ("32-true", "bf16-mixed")


class StopOnInterrupt(L.Callback):
    """Ctrl-C and SIGTERM end the training after the batch at hand; a second one ends it at once."""

    status = 0  # 128 + the signal's number, once one has come

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.status:
                raise KeyboardInterrupt
            self.status = 128 + number
            trainer.should_stop = True
            print("\nInterrupted: finishing this step; once more to stop at once.", flush=True)

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)


def train(config: DictConfig, folder: Path) -> int:
    """Trains to the end and leaves summary.json; the exit status."""
    if config.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={config.trainer.precision!r}: must be one of {', '.join(PRECISIONS)}")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed={config.seed}: must lie between 0 and 2^32 - 1")
    checkpoint = find(config.resume, folder)
    L.seed_everything(config.seed, verbose=False)
    data = build(config.data)
    module = HeadModule(config, data)
    recorder = Recorder(folder, config.trainer.log_interval)
    interrupt = StopOnInterrupt()
    callbacks = [
        recorder,
        Evaluation(config.evaluate, recorder),
        Checkpoints(config.checkpoint, folder / "checkpoints", recorder),
        ProgressBar(recorder, config.trainer.log_interval),
        interrupt,
    ]
    loggers = [MetricsCSV(folder, resumed_step=step_of(checkpoint))]
    if (wandb_run := wandb_logger(config, folder)) is not None:
        loggers.append(wandb_run)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        strategy=SingleDevice(device_for(config.trainer.accelerator)),
        precision=config.trainer.precision,
        max_epochs=1,  # of Lightning: the loader itself runs through all steps
        logger=loggers,
        callbacks=callbacks,  # type: ignore[arg-type]
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    status = "failed"
    try:
        print(describe(module, folder), flush=True)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
        status = "interrupted" if interrupt.status and module.step < module.num_steps else "finished"
    finally:
        # Also of a failed run: what was measured until then.
        summary = recorder.write_summary(module, status)
        if wandb_run is not None:
            wandb_run.experiment.summary.update(summary)
            wandb.finish(exit_code=0 if status == "finished" else 1)
    print_summary(summary, folder)
    return interrupt.status if status == "interrupted" else 0


def describe(module: HeadModule, folder: Path) -> str:
    parameters = sum(p.numel() for p in module.backbone.parameters())
    return (
        f"{module.head.__class__.__name__} over {module.data.train.num_classes:,} classes, "
        f"{len(module.data.train):,} training records; "
        f"{module.backbone.__class__.__name__} of {parameters:,} parameters; "
        f"{module.num_steps:,} steps of {module.config.batch_size * module.accumulate}; {folder}"
    )


def device_for(accelerator: str) -> torch.device:
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator={accelerator!r}: must be auto, cpu or gpu")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if accelerator in ("gpu", "cuda"):
        raise ValueError(f"trainer.accelerator={accelerator}: torch finds no CUDA device; use auto or cpu")
    return torch.device("cpu")


def main() -> None:
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
    )  # Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder = Path(sys.argv[1])
    try:
        sys.exit(train(OmegaConf.load(folder / "config.yaml"), folder))  # type: ignore[arg-type]
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
