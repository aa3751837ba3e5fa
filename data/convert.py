"""`python -m data.convert source=... target=...`: images of any format, as LMDB, .rec or a folder; pairs as .bin.

Images keep their bytes unless `encode=jpeg` asks for others. What is written is made in `TARGET.partial`, so that a
conversion that was killed goes on where it was (a .bin begins anew), is read back and compared, and gets its name at
the end. The source is never written to.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m data.convert")


import difflib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from .cache import cache_folder
from .catalog import Origin, catalog
from .conversion.conversion import CONF, Options, Report, look, target_format, upload, write
from .conversion.pair_bin import check_packing, pack
from .formats.lmdb_images import FIELDS
from .formats.sources import format_of
from .options import absolute, path_of, paths_of
from .records import forget_opened
from .screen import bars, console
from .sets.images import FORMATS

SMALL = 5000  # images for which starting workers takes longer than the work
TOLD = 20  # of the unreadable images, on the screen


def convert(options: Options, screen: Console | None = None) -> Report:
    """Converts; raises ValueError for options, sources and images that do not allow it."""
    screen = screen or console()
    check(options)
    if options.on_corrupt != "list" and target_format(options) == "bin":
        return packed(options, screen)
    cache = cache_folder(options.cache_dir)
    paths, labels = tuple(paths_of("source", options.source)), tuple(paths_of("labels", options.labels))
    origin = Origin(source_format(options), paths, labels, path_of("root", options.root), options.shared)
    try:
        source = catalog(origin, cache, "stop" if options.on_corrupt == "stop" else "skip")
        if options.num_workers is None:
            options = replace(options, num_workers=0 if len(source) < SMALL else os.cpu_count() or 1)
        with bars(screen) as progress:
            if options.on_corrupt == "list":
                report = look(source, options, progress)
            elif "://" in str(options.target):
                report = upload(source, options, progress, cache)
            else:
                report = write(source, options, Path(absolute(str(options.target))), progress)
    except OSError as error:
        raise ValueError(f"{error.filename or options.target}: {error.strerror or error}") from error
    except lmdb.Error as error:  # no room
        raise ValueError(f"target={options.target}: {error}") from error
    finally:
        forget_opened()
    tell(report, options, screen)
    return report


def packed(options: Options, screen: Console) -> Report:
    """Of pairs instead of classes."""
    with bars(screen) as progress:
        try:
            report = pack(options, progress)
        except OSError as error:
            raise ValueError(f"{error.filename or options.target}: {error.strerror or error}") from error
    tell(report, options, screen, of="pairs")
    return report


def check(options: Options) -> None:
    """Raises ValueError for options that are wrong by themselves."""
    if not paths_of("source", options.source):
        raise ValueError("source=null: a path is needed, as in source=faces.rec target=faces.lmdb")
    if options.on_corrupt not in ("stop", "skip", "list"):
        raise ValueError(f"on_corrupt={options.on_corrupt}: must be stop, skip or list")
    if options.on_corrupt != "list" and options.target is None:
        raise ValueError("target=null: a path is needed, as in source=faces.rec target=faces.lmdb")
    kind = None if options.on_corrupt == "list" else target_format(options)
    if kind == "bin":
        check_packing(options)
    for name, allowed, of in (
        ("validation", kind in (None, "folder"), "format=folder"),
        ("datum", kind in (None, "lmdb"), "an LMDB target"),
        ("keys", kind in (None, "lmdb", "folder"), "a target of LMDB or folders"),
        ("quality", kind is None or options.encode is not None, "encode=jpeg"),
        ("size", kind is None or options.encode is not None, "encode=jpeg"),
        ("labels", source_format(options) == "lmdb", "a source of LMDB"),
        ("root", kind == "bin" or source_format(options) == "list", "a source that is a list"),
    ):
        if getattr(options, name) is not None and not allowed:
            raise ValueError(f"{name}={getattr(options, name)}: is an option of {of} only")
    if options.encode not in (None, "jpeg"):
        raise ValueError(f"encode={options.encode}: must be jpeg, or null to keep the bytes")
    if options.size is not None and options.size < 1:
        raise ValueError(f"size={options.size}: must be at least 1")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ValueError(f"quality={options.quality}: must lie between 1 and 100")
    if options.datum not in (None, *FIELDS):
        raise ValueError(f"datum={options.datum}: must be one of {', '.join(FIELDS)}")
    if options.keys not in (None, "source", "number"):
        raise ValueError(f"keys={options.keys}: must be source or number")
    if options.validation is not None and not 0 <= options.validation < 1:
        raise ValueError(f"validation={options.validation}: a share in [0, 1) is needed")
    if options.num_workers is not None and options.num_workers < 0:
        raise ValueError(f"num_workers={options.num_workers}: must not be negative")


def source_format(options: Options) -> str:
    """As given, or as the first source looks."""
    if options.source_format is not None:
        if options.source_format not in FORMATS:
            raise ValueError(f"source_format={options.source_format}: must be one of {', '.join(FORMATS)}")
        return options.source_format
    path = paths_of("source", options.source)[0]
    if not Path(path).exists():
        raise ValueError(f"source={path}: there is no such file or folder")
    return format_of(path)


def tell(report: Report, options: Options, screen: Console, of: str = "classes") -> None:
    screen.print(str(options.target or "Looked at"), style="italic", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in (
        (of, f"{report.classes:,}"),
        ("images", f"{report.images:,}"),
        ("bytes", f"{report.bytes:,}"),
        ("unreadable", f"{len(report.unreadable):,}"),
    ):
        table.add_row(name, value)
    screen.print(table)
    told = report.unreadable if options.on_corrupt == "list" else report.unreadable[:TOLD]
    for bad in told:
        screen.print(f"unreadable: {bad.key}: {bad.reason}", highlight=False, soft_wrap=True)
    if len(report.unreadable) > len(told):
        screen.print(f"and {len(report.unreadable) - len(told):,} more; on_corrupt=list lists all")
    for remark in report.remarks:
        screen.print(remark, highlight=False, soft_wrap=True)


def parse(words: list[str]) -> Options:
    """NAME=VALUE each. Raises ValueError for what is no option."""
    known = OmegaConf.load(CONF)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name not in known:
            close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
            raise ValueError(
                f"{word}: no option NAME=VALUE; {f'did you mean {close[0]}? ' if close else ''}--help lists them"
            )
    paths: dict[str, Any] = {}
    others = []
    for word in words:
        name, _, value = word.partition("=")
        # A path is taken as it stands; of what else there is, null, numbers and [lists].
        if name in ("target", "root", "labels", "source") and not value.startswith("[") and value != "null":
            paths[name] = value
        else:
            others.append(word)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Options), known, OmegaConf.from_dotlist(others))
        options = OmegaConf.to_object(config)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    assert isinstance(options, Options)
    return replace(options, **paths)


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(f"{__doc__}\n{CONF.read_text()}")
        return
    try:
        options = parse(sys.argv[1:])
        report = convert(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on.")
    sys.exit(1 if options.on_corrupt == "list" and report.unreadable else 0)


if __name__ == "__main__":
    main()
