"""Detection of a source's format, and advice for files of other kinds."""

import glob
import re
from pathlib import Path

from ..files import open_file
from .shards import matching

FORMATS = {
    "lmdb": "an LMDB folder with its key-label file",
    "rec": "a .rec file, with its .idx next to it if there is one",
    "folder": "a folder with a folder for each class, or a pattern of the class folders such as 'omniglot/*/*'",
    "list": "a file with a line `path<TAB>label`, or base64 and label, for each image",
    "wds": "WebDataset: a .tar file, a folder of them, or a pattern such as train-*.tar",
    "parquet": "a Parquet table of images, a folder of them, or a pattern such as train-*.parquet",
}
ADVICE = {
    ".bin": "contains pairs of images, not classes; pass it to protocol.lfw.source, or convert it with target=NAME.bin",
    ".idx": "is the index of a .rec file; pass the .rec file, and its index is found automatically",
    ".mdb": "is a part of an LMDB; pass the folder that contains it",
    ".npy": "contains an array, not encoded images; pass image files",
    ".csv": "is a table; pass a list with a line path<TAB>label for each image",
    ".parquet": "is a table of the Hugging Face Hub; pass data=parquet, or format=parquet",
    ".arrow": "is a table; write it as Parquet, Dataset.to_parquet(PATH), and pass data=parquet",
}
ARCHIVE = "is an archive; unpack it, and pass the folder or file inside"
ADVICE[".tar"] = "is an archive; pass data=wds or format=wds if it is a WebDataset, or else unpack it"
ADVICE |= dict.fromkeys((".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"), ARCHIVE)
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
IMAGES = (b"\xff\xd8", b"\x89PNG", b"GIF8")
BY_ENDING = {".rec": "rec", ".tar": "wds", ".parquet": "parquet"}
IM2REC = re.compile(rb"\d+\t-?\d+(\.\d*)?\t[^\n]*[^\d\s][^\n]*")  # number, label or labels, path
BEGINNING = 512  # bytes that are inspected


def format_of(path: str) -> str:
    """Return the format of a file or folder, by its name and content."""
    if Path(path).is_dir():
        if Path(path, "data.mdb").exists():
            return "lmdb"
        endings = {file.suffix for file in Path(path).iterdir() if file.is_file()}
        return next((format for ending, format in BY_ENDING.items() if ending in endings), "folder")
    if glob.has_magic(path) and any(Path(match).is_dir() for match in matching(path)):
        return "folder"
    return BY_ENDING.get(Path(path).suffix, "list")


def check_source(path: str, format: str) -> None:
    """Raise ValueError, with advice, for a file that is not in this format."""
    if not Path(path).is_file() or BY_ENDING.get(Path(path).suffix, "list") == format != "list":
        return
    with open(open_file(path), "rb") as file:  # noqa: PTH123
        begins = file.read(BEGINNING)
    if begins.startswith(ARCHIVES) or (begins[257:262] == b"ustar" and format != "wds"):
        raise ValueError(f"{path} {ARCHIVE}")
    if Path(path).suffix.lower() in ADVICE:
        raise ValueError(f"{path} {ADVICE[Path(path).suffix.lower()]}")
    if begins.startswith(IMAGES):
        raise ValueError(f"{path} is an image; pass the folder that contains it, or a list of images")
    if IM2REC.match(begins) and Path(path).suffix != ".lst":
        raise ValueError(f"{path} is a list of im2rec, number<TAB>label<TAB>path; name it {Path(path).stem}.lst")
