"""Find the checkpoint that an option names. Imports no torch."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import run_files
from .storage import COMPLETE, OLD_COMPLETE, CheckpointStore, Folder, open_store


def find(resume: str | None, run_folder: Path, configured: str | None, option: str = "resume") -> str | None:
    """Return the checkpoint that `resume=` names, as a path or URL.

    Args:
        resume: auto, for the newest of this run; a run's folder; a folder of checkpoints; or a checkpoint.
        run_folder, configured: the run's folder, and its option `checkpoint.dir`.
        option: what the first is called, for errors.

    Raises:
        ValueError: there is none, or it is not where `resume=` says. What a file beside a checkpoint says is never
            followed: folders of others may say anything.
    """
    if resume is None:
        return None
    if resume == "auto":
        saves = checkpoint_dir(run_folder, configured)
        if isinstance(saves, Folder) and (saves.path / "latest").is_dir() and saves.resolve_alias("latest") is None:
            raise ValueError(
                f"{option}=auto: {(saves.path / 'latest').resolve()} is damaged, it has no {COMPLETE}; remove it to go "
                "on from the newest of the others, or to begin anew where there is none"
            )
        return _newest(saves)
    if isinstance(resume, bool) or not isinstance(resume, str | int):
        raise ValueError(f"{option}={resume}: one run's folder, or one checkpoint, is needed")
    resume = str(resume).rstrip("/")
    if "://" not in resume:
        try:
            resume = str(Path(resume).resolve())
        except RuntimeError:  # of Python before 3.13
            raise ValueError(f"{option}={resume}: is a link that leads to itself; give a checkpoint, step-*") from None
    folder, _, name = resume.rpartition("/")
    above = open_store(folder)
    if {COMPLETE, OLD_COMPLETE} & {*above.sizes(name)}:
        return resume
    if pointed := above.resolve_alias(name):  # latest, best
        return f"{folder}/{pointed}"
    if "://" not in resume and (elsewhere := _written_to(Path(resume))) is not None:
        here = f", or {option}={resume}/checkpoints for those here" if Path(resume, "checkpoints").exists() else ""
        raise ValueError(
            f"{option}={resume}: its config.yaml says that its checkpoints are in {elsewhere}, which is not followed; "
            f"give {option}={elsewhere} if that is where you want to read{here}"
        )
    for inside in (f"{resume}/checkpoints", resume):
        if newest := _newest(open_store(inside)):
            return newest
    raise ValueError(f"{option}={resume}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")


def checkpoint_dir(run_folder: Path, configured: str | None) -> CheckpointStore:
    """Return where the checkpoints of a run lie."""
    return open_store(configured) if configured else Folder(run_folder / "checkpoints")


def _written_to(run_folder: Path) -> str | None:
    """Return the place that a run's config.yaml names for its checkpoints, if it is not the run's folder."""
    if not (run_folder / "config.yaml").exists():
        return None
    try:
        named = OmegaConf.select(run_files.config(run_folder / "config.yaml"), "checkpoint.dir")
    except (OSError, run_files.DamagedError, OmegaConfBaseException):
        return None  # it names none
    if not isinstance(named, str) or ("://" not in named and Path(named).resolve() == run_folder / "checkpoints"):
        return None
    return named


def _newest(where: CheckpointStore) -> str | None:
    complete = where.complete()
    return f"{where}/{complete[-1]}" if complete else None
