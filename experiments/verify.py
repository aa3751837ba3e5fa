"""`python -m experiments.verify CHECKPOINT`: verify that a checkpoint holds the bytes that were written.

CHECKPOINT is a run's folder (its newest checkpoint), a checkpoint, or a URL; several may be given. Each file is read
once and compared with the digests in the manifest. The exit status is 1 if anything is damaged.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.verify")


import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from .checkpoints.finding import find
from .checkpoints.manifest import Block, DamageError, check_block, read_manifest, wrong_sizes
from .checkpoints.storage import CheckpointStore, open_store
from .tables import console, shown


def verify(path: str) -> bool:
    """Print a table of the files of a checkpoint; return whether all are intact.

    Raises:
        ValueError: there is no checkpoint, or this version does not read it.
    """
    checkpoint = find(path, Path(), None, "checkpoint") if path != "auto" else None
    if checkpoint is None:
        raise ValueError(f"{path} must be the folder of a run, or one of its checkpoints")
    folder, _, name = checkpoint.rpartition("/")
    store = open_store(folder)
    try:
        manifest = read_manifest(store, name)
    except DamageError as error:
        raise ValueError(f"{checkpoint} cannot be verified: {error}") from error
    wrong = dict(wrong_sizes(manifest, store.sizes(name)))
    table = Table("file", "bytes", "", title=Text(checkpoint), title_justify="left")
    table.columns[1].justify = "right"
    damaged = 0
    for file, blocks in shown(manifest.by_file().items(), "Verifying", len(manifest.by_file())):
        faults = [wrong[file]] if file in wrong else _faults(store, name, blocks)
        damaged += bool(faults)
        size = sum(block.length for _, block in blocks)
        table.add_row(Text(file), f"{size:,}", Text("\n".join(faults) or "intact"))
    screen = console()
    screen.print(table)
    written_by = f"version {manifest.program['version']}, commit {manifest.program['commit'] or 'unknown'}"
    result = f"{damaged} of {len(manifest.by_file())} files are damaged" if damaged else "All files are intact"
    screen.print(f"{result}; written by {written_by}", markup=False, highlight=False)
    return not damaged


def _faults(store: CheckpointStore, name: str, blocks: Sequence[tuple[str, Block]]) -> list[str]:
    faults = []
    for tensor, block in blocks:
        try:
            check_block(store.read(name, block.file, block.begin, block.length), tensor, block)
        except DamageError as error:
            faults.append(str(error))
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a run's folder, a checkpoint, or a URL")
    intact = True
    for path in parser.parse_args().checkpoints:
        try:
            intact &= verify(path)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            intact = False
        except OSError as error:
            print(f"error: {error.filename or path}: {error.strerror or error}", file=sys.stderr)
            intact = False
    sys.exit(not intact)


if __name__ == "__main__":
    main()
