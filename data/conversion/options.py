"""Options of `python -m data.convert`: read from the command line, and checked."""

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..formats.lmdb_images import FIELDS
from ..formats.shards import exists
from ..formats.sources import FORMATS, format_of
from ..options import paths_of

CONF = Path(__file__).resolve().parents[2] / "conf" / "convert.yaml"
# Options that apply to format=bin.
OF_PAIRS = ("source", "target", "format", "root", "encode", "quality", "size", "verify")
TARGETS = ("lmdb", "rec", "folder", "wds", "parquet", "bin")
PATHS = ("target", "root", "labels", "source")


@dataclass
class Options:
    """Options of the command; see conf/convert.yaml."""

    source: Any
    target: str | None
    format: str | None
    source_format: str | None
    labels: Any
    root: str | None
    image_column: str | None
    label_column: str | None
    shared: bool
    renumber: bool
    keys: str | None
    shuffle: bool
    seed: int
    datum: str | None
    encode: str | None
    quality: int | None
    size: int | None
    verify: bool
    on_corrupt: str
    validation: float | None
    num_workers: int | None
    cache_dir: str | None


def parse(words: list[str]) -> Options:
    """Return the options that the words NAME=VALUE give.

    Raises:
        ValueError: a word is not an option with a value of its type.
    """
    defaults = OmegaConf.load(CONF)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name not in defaults:
            close = difflib.get_close_matches(name, [str(option) for option in defaults], n=1)
            suggestion = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{word} is not an option NAME=VALUE; {suggestion}--help lists the options")
    paths: dict[str, Any] = {}
    others = []
    for word in words:
        name, _, value = word.partition("=")
        # YAML would misread some paths, such as `a: b`. Lists and null remain YAML.
        if name in PATHS and not value.startswith("[") and value != "null":
            paths[name] = value
        else:
            others.append(word)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Options), defaults, OmegaConf.from_dotlist(others))
        options = OmegaConf.to_object(config)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    assert isinstance(options, Options)
    return replace(options, **paths)


def target_format(options: Options) -> str:
    """Return the target's format: the given one, or that of the target's ending."""
    format = options.format or {".lmdb": "lmdb", ".rec": "rec", ".bin": "bin"}.get(Path(str(options.target)).suffix)
    if format not in TARGETS:
        raise ValueError(
            f"target={options.target} with format={options.format} has no known format; format must be "
            f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}, and may be omitted if the target ends in .lmdb, .rec or .bin"
        )
    if format in ("wds", "parquet") and str(options.target).endswith((".tar", ".parquet")):
        raise ValueError(f"target={options.target} with format={format} must be a folder, for files of several parts")
    if format in ("rec", "bin") and not str(options.target).endswith(f".{format}"):
        raise ValueError(f"target={options.target} must end in .{format} with format={format}")
    return format


def source_format(options: Options) -> str:
    """Return the source's format: the given one, or that of the first source."""
    if options.source_format is not None:
        if options.source_format not in FORMATS:
            raise ValueError(f"source_format={options.source_format} must be one of {', '.join(FORMATS)}")
        return options.source_format
    path = paths_of("source", options.source)[0]
    if not exists(path):
        raise ValueError(f"source={path} does not exist")
    return format_of(path)


def check(options: Options) -> None:
    """Raise ValueError for options that are out of range or do not apply."""
    if not paths_of("source", options.source):
        raise ValueError("source=null must be a path; for example source=faces.rec target=faces.lmdb")
    if options.on_corrupt not in ("stop", "skip", "list"):
        raise ValueError(f"on_corrupt={options.on_corrupt} must be stop, skip or list")
    if options.on_corrupt != "list" and options.target is None:
        raise ValueError("target=null must be a path; for example source=faces.rec target=faces.lmdb")
    format = None if options.on_corrupt == "list" else target_format(options)
    if format == "bin":
        _check_pairs(options)
    _check_applicable(options, format)
    if options.encode not in (None, "jpeg"):
        raise ValueError(f"encode={options.encode} must be jpeg, or null to keep the bytes of the images")
    if options.size is not None and options.size < 1:
        raise ValueError(f"size={options.size} must be at least 1 pixel")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ValueError(f"quality={options.quality} must be in [1, 100]")
    if options.datum not in (None, *FIELDS):
        raise ValueError(f"datum={options.datum} must be one of {', '.join(FIELDS)}")
    if options.keys not in (None, "source", "number"):
        raise ValueError(f"keys={options.keys} must be source or number")
    if options.validation is not None and not 0 <= options.validation < 1:
        raise ValueError(f"validation={options.validation} must be in [0, 1); 0.1 lists a tenth of the images")
    if options.num_workers is not None and options.num_workers < 0:
        raise ValueError(f"num_workers={options.num_workers} must be at least 0")


def _check_applicable(options: Options, format: str | None) -> None:
    """Raise ValueError for an option that has no effect with this source and target.

    Args:
        format: the target's format; None if nothing is written.
    """
    encodes = format is None or options.encode is not None
    for name, applies, condition in (
        ("validation", format in (None, "folder"), "to format=folder"),
        ("datum", format in (None, "lmdb"), "to LMDB targets"),
        ("keys", format in (None, "lmdb", "folder"), "to LMDB and folder targets"),
        ("quality", encodes, "with encode=jpeg"),
        ("size", encodes, "with encode=jpeg"),
        ("labels", source_format(options) == "lmdb", "to LMDB sources"),
        ("root", format == "bin" or source_format(options) == "list", "to sources that are lists"),
        ("image_column", format != "bin" and source_format(options) == "parquet", "to Parquet sources"),
        (
            "label_column",
            format != "bin" and source_format(options) in ("wds", "parquet"),
            "to tar and Parquet sources",
        ),
    ):
        value = getattr(options, name)
        if value is not None and not applies:
            raise ValueError(f"{name}={value} applies {condition} only; remove it")


def _check_pairs(options: Options) -> None:
    """Raise ValueError for an option that pairs do not have."""
    defaults: Any = OmegaConf.load(CONF)
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in OF_PAIRS and value != defaults[field.name]:
            raise ValueError(f"{field.name}={value} does not apply to format=bin; remove it")
    if len(paths_of("source", options.source)) != 1:
        raise ValueError(f"source={options.source} must be a single list of pairs; one list becomes one .bin")
    if options.root is not None and str(options.source).endswith(".bin"):
        raise ValueError(f"root={options.root} applies to pair lists only; a .bin file already contains its images")
    if "://" in str(options.target):
        raise ValueError(f"target={options.target} must be a local path; a .bin cannot be written to a URL")
