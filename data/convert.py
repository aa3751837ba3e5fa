"""`python -m data.convert source=... target=...`: convert images of any format to LMDB, .rec, a folder, .tar or
Parquet, and pairs to .bin.

Images keep their bytes unless `encode=jpeg` is given. The target is written to `TARGET.partial`, read back, compared
with the source, and then renamed. The same command resumes an interrupted conversion; a .bin starts from the beginning.
The source is never written to.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m data.convert")


import os
import sys
from dataclasses import replace
from pathlib import Path

import lmdb
from rich.console import Console

from .cache import cache_folder
from .catalogs.catalog import catalog
from .catalogs.origin import Origin
from .conversion.images import check_images
from .conversion.options import CONF, Options, check, parse, source_format, target_format
from .conversion.pair_bin import write_pair_bin
from .conversion.report import Report, print_report
from .conversion.upload import upload
from .conversion.writing import write
from .options import absolute, path_of, paths_of
from .records import forget_opened
from .screen import bars, console

SMALL = 5000  # up to this many images, starting workers takes longer than the work


def convert(options: Options, screen: Console | None = None) -> Report:
    """Convert a source and print the report.

    Raises:
        ValueError: an option is invalid, or the source or one of its images cannot be converted.
    """
    screen = screen or console()
    check(options)
    pairs = options.on_corrupt != "list" and target_format(options) == "bin"
    try:
        report = _convert_pairs(options, screen) if pairs else _convert_images(options, screen)
    except OSError as error:
        raise ValueError(f"{error.filename or options.target}: {error.strerror or error}") from error
    except lmdb.Error as error:  # no space left, for example
        raise ValueError(f"target={options.target} cannot be written: {error}") from error
    finally:
        forget_opened()
    list_all = options.on_corrupt == "list"
    print_report(report, options.target, screen, unit="pairs" if pairs else "classes", list_all=list_all)
    return report


def _convert_images(options: Options, screen: Console) -> Report:
    cache = cache_folder(options.cache_dir)
    paths, labels = tuple(paths_of("source", options.source)), tuple(paths_of("labels", options.labels))
    columns = (options.image_column, options.label_column)
    origin = Origin(source_format(options), paths, labels, path_of("root", options.root), options.shared, columns)
    source = catalog(origin, cache, "stop" if options.on_corrupt == "stop" else "skip")
    if source.all_labels is not None and options.on_corrupt != "list":
        raise ValueError(
            f"source={options.source} has several labels for an image, and a converted set has one; train on the list "
            "itself with data=list"
        )
    if options.num_workers is None:
        options = replace(options, num_workers=0 if len(source) < SMALL else os.cpu_count() or 1)
    with bars(screen) as progress:
        if options.on_corrupt == "list":
            return check_images(source, options, progress)
        if "://" in str(options.target):
            return upload(source, options, progress, cache)
        return write(source, options, Path(absolute(str(options.target))), progress)


def _convert_pairs(options: Options, screen: Console) -> Report:
    with bars(screen) as progress:
        return write_pair_bin(options, progress)


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
        sys.exit("\nInterrupted; run the same command to resume.")
    sys.exit(1 if options.on_corrupt == "list" and report.unreadable else 0)


if __name__ == "__main__":
    main()
