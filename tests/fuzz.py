"""Fuzzing of all readers: `python -m tests.fuzz --seconds 300` damages files of every format and reads them.

Whatever a file contains, a reader must return the readable images or raise ValueError. Each attempt of the command runs
in its own process, so that crashes are detected too. The files of a failure are kept.
"""

import argparse
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from data.catalogs.catalog import catalog
from data.catalogs.origin import Origin
from data.formats.decode import Decoder
from data.formats.encoded import UnreadableError
from data.formats.pairs import read_pairs
from tests.data.made_sets import (
    MAGIC,
    images,
    write_base64,
    write_folder,
    write_list,
    write_lmdb,
    write_parquet,
    write_rec,
    write_tar,
)

SECONDS = 20  # longer attempts count as hanging
INTERESTING = (
    b"\0",
    b"\xff",
    MAGIC,
    b"\n",
    b"\t",
    b" ",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"0",
    b"-",
    b"\xff\xd8",
)
FORMATS = (
    "rec",
    "header",
    "no index",
    "lmdb list",
    "lmdb",
    "list",
    "base64",
    "folder",
    "wds",
    "parquet",
    "pairs",
    "bin",
)


def make(kind: str, folder: Path) -> tuple[str, Path, list[Path]]:
    """Write an undamaged set. Return its format, its path, and the files to damage."""
    items = images([0, 0, 1, 2, 1])
    if kind in ("rec", "header", "no index"):
        path = write_rec(folder / "set.rec", items, header=kind == "header", index=kind != "no index")
        return "rec", path, [file for file in (path, path.with_suffix(".idx")) if file.exists()]
    if kind in ("lmdb", "lmdb list"):
        path = write_lmdb(folder / "set.lmdb", items)
        return "lmdb", path, [path / ("data.mdb" if kind == "lmdb" else "set_kv.txt")]
    if kind == "folder":
        path = write_folder(folder / "set", items)
        return "folder", path, sorted(path.rglob("*.jpg"))
    if kind == "wds":
        path = write_tar(folder / "set.tar", items)
        return "wds", path, [path]
    if kind == "parquet":
        path = write_parquet(folder / "set.parquet", items)
        return "parquet", path, [path]
    if kind == "bin":
        path = folder / "pairs.bin"
        encoded = [
            encoded if number % 2 else np.frombuffer(encoded, np.uint8) for number, (_, encoded) in enumerate(items)
        ]
        path.write_bytes(pickle.dumps((encoded[:4], [True, False]), 2))
        return "pairs", path, [path]
    if kind == "pairs":
        path = folder / "pairs.txt"
        path.write_text("a.jpg\tb.jpg\t1\nc.jpg\td.jpg\t0\n")
        return "pairs", path, [path]
    path = folder / "set.txt"
    write_list(path, items) if kind == "list" else write_base64(path, items)
    return "list", path, [path]


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """Change, remove, insert or duplicate a few bytes, or truncate the end."""
    changed = bytearray(content)
    for _ in range(draw.integers(1, 6)):
        if not changed:
            break
        at = int(draw.integers(len(changed)))
        length = int(draw.integers(1, 40))
        way = draw.integers(6)
        if way == 0:
            changed[at] ^= 1 << draw.integers(8)
        elif way == 1:
            new = INTERESTING[draw.integers(len(INTERESTING))]
            changed[at : at + len(new)] = new
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = draw.bytes(length)
        elif way == 4:
            changed[at:at] = changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed)


def attempt(seed: int, kind: str, folder: Path) -> str:
    """Read a damaged set and return the outcome. Only ValueError is caught."""
    draw = np.random.default_rng(seed)
    format, path, files = make(kind, folder)
    for file in files:
        if draw.random() < 0.7:
            file.write_bytes(damaged(file.read_bytes(), draw))
    try:
        if format == "pairs":
            pairs = read_pairs(path)
            return f"{len([pairs.images.name(index) for index in pairs.first])} pairs"
        loaded = catalog(Origin(format, (str(path),)), folder / "cache", "skip")
    except ValueError as error:
        assert "\n" not in str(error).rstrip(), f"the message has several lines: {error}"
        return "refused"
    decoder, unreadable = Decoder(24, 24, 3), 0
    for index in range(len(loaded)):
        loaded.key(index)
        try:
            decoder.into(np.empty((24, 24, 3), np.uint8), loaded.read(index))
        except UnreadableError as error:
            assert str(error)
            unreadable += 1
    return "read" if not unreadable else "read in part"


def in_a_process(seed: int, kind: str) -> str:
    """Return the outcome of an attempt in its own process. Raises RuntimeError if that process fails."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    output = folder / "output"
    if (pid := os.fork()) == 0:
        signal.alarm(SECONDS)
        try:
            output.write_text(attempt(seed, kind, folder))
        except BaseException:
            output.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcome = output.read_text() if output.exists() else ""
    if status:
        raise RuntimeError(f"seed {seed}, {kind}: ended with {status}; {folder}\n{outcome}")
    shutil.rmtree(folder)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    failed: list[str] = []
    end = time.monotonic() + arguments.seconds
    seed = arguments.seed
    while time.monotonic() < end:
        kind = arguments.formats[seed % len(arguments.formats)]
        try:
            outcomes[f"{kind}: {in_a_process(seed, kind)}"] += 1
        except RuntimeError as error:
            failed.append(str(error))
            outcomes[f"{kind}: FAILED"] += 1
        seed += 1
    for name, count in sorted(outcomes.items()):
        print(f"{count:7,}  {name}")
    for error in failed[:10]:
        print(error)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
