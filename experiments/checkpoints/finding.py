"""Search for the checkpoint that an option names. Importing this module does not import torch."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import run_files
from .storage import COMPLETE, OLD_COMPLETE, CheckpointStore, Folder, open_store


def find(resume: str | None, run_folder: Path, configured: str | None, option: str = "resume") -> str | None:
    """Return the path or URL of the checkpoint that `resume=` names; None for null.

    Args:
        resume: a run's folder, a folder of checkpoints, or a checkpoint; auto is the newest checkpoint of this run, or
            None.
        run_folder: folder of this run.
        configured: this run's option `checkpoint.dir`.
        option: name of `resume`, for messages.

    Raises:
        ValueError: there is no checkpoint, or it is in another place than `resume=` names. Paths in files are never
            followed, because a folder from someone else may name any path.
    """
    if resume is None:
        return None
    if resume == "auto":
        store = checkpoint_dir(run_folder, configured)
        if isinstance(store, Folder) and (store.path / "latest").is_dir() and store.resolve_alias("latest") is None:
            raise ValueError(
                f"{option}=auto cannot be used: {(store.path / 'latest').resolve()} is damaged, it has no {COMPLETE}; "
                "remove it to resume from the newest other checkpoint, or to start again if there is none"
            )
        return _newest(store)
    if isinstance(resume, bool) or not isinstance(resume, str | int):
        raise ValueError(f"{option}={resume} must be one run's folder or one checkpoint")
    resume = str(resume).rstrip("/")
    if "://" not in resume:
        try:
            resume = str(Path(resume).resolve())
        except RuntimeError:  # in Python before 3.13
            raise ValueError(f"{option}={resume} is a link to itself; give a checkpoint, step-*") from None
    folder, _, name = resume.rpartition("/")
    above = open_store(folder)
    if {COMPLETE, OLD_COMPLETE} & {*above.sizes(name)}:
        return resume
    if target := above.resolve_alias(name):  # latest, best
        return f"{folder}/{target}"
    if "://" not in resume and (other_dir := _configured_dir(Path(resume))) is not None:
        own_dir = Path(resume, "checkpoints")
        alternative = f", or {option}={own_dir} for those in this folder" if own_dir.exists() else ""
        raise ValueError(
            f"{option}={resume} has a config.yaml that names {other_dir} for its checkpoints, and paths in files are "
            f"not followed; give {option}={other_dir} to read there{alternative}"
        )
    for inside in (f"{resume}/checkpoints", resume):
        if newest := _newest(open_store(inside)):
            return newest
    raise ValueError(f"{option}={resume} holds no checkpoint; give a run's folder or one of its checkpoints/step-*")


def checkpoint_dir(run_folder: Path, configured: str | None) -> CheckpointStore:
    """Return the store of a run's checkpoints: `checkpoint.dir` if set, otherwise `checkpoints` in its folder."""
    return open_store(configured) if configured else Folder(run_folder / "checkpoints")


def _configured_dir(run_folder: Path) -> str | None:
    """Return the `checkpoint.dir` in a run's config.yaml, if it is not in the run's folder."""
    if not (run_folder / "config.yaml").exists():
        return None
    try:
        named = OmegaConf.select(run_files.config(run_folder / "config.yaml"), "checkpoint.dir")
    except (OSError, run_files.DamagedError, OmegaConfBaseException):
        return None
    if not isinstance(named, str) or ("://" not in named and Path(named).resolve() == run_folder / "checkpoints"):
        return None
    return named


def _newest(store: CheckpointStore) -> str | None:
    complete = store.complete()
    return f"{store}/{complete[-1]}" if complete else None
