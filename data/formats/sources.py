"""Detection of a source's format, and advice for files of other kinds."""

import re
from pathlib import Path

from ..files import open_file

FORMATS = {
    "lmdb": "an LMDB folder with its key-label file",
    "rec": "a .rec file, with its .idx next to it if there is one",
    "folder": "a folder with a folder for each class",
    "list": "a file with a line `path<TAB>label`, or base64 and label, for each image",
}
ADVICE = {
    ".bin": "contains pairs of images, not classes; pass it to protocol.lfw.source, or convert it with target=NAME.bin",
    ".idx": "is the index of a .rec file; pass the .rec file, and its index is found automatically",
    ".mdb": "is a part of an LMDB; pass the folder that contains it",
    ".npy": "contains an array, not encoded images; pass image files",
    ".csv": "is a table; pass a list with a line path<TAB>label for each image",
    ".parquet": "is a table; pass a list with a line path<TAB>label for each image",
}
ARCHIVE = "is an archive; unpack it, and pass the folder or file inside"
ADVICE |= dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"), ARCHIVE)
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
IMAGES = (b"\xff\xd8", b"\x89PNG", b"GIF8")
IM2REC = re.compile(rb"\d+\t-?\d+(\.\d*)?\t[^\n]*[^\d\s][^\n]*")  # number, label or labels, path
BEGINNING = 512  # bytes that are inspected


def format_of(path: str) -> str:
    """Return the format of a file or folder, by its name and content."""
    if Path(path).is_dir():
        return "lmdb" if Path(path, "data.mdb").exists() else "folder"
    return "rec" if path.endswith(".rec") else "list"


def check_source(path: str) -> None:
    """Raise ValueError, with advice, for a file that is in none of the supported formats."""
    if not Path(path).is_file():
        return
    with open(open_file(path), "rb") as file:  # noqa: PTH123
        begins = file.read(BEGINNING)
    if begins.startswith(ARCHIVES) or begins[257:262] == b"ustar":
        raise ValueError(f"{path} {ARCHIVE}")
    if Path(path).suffix.lower() in ADVICE:
        raise ValueError(f"{path} {ADVICE[Path(path).suffix.lower()]}")
    if begins.startswith(IMAGES):
        raise ValueError(f"{path} is an image; pass the folder that contains it, or a list of images")
    if IM2REC.match(begins):
        raise ValueError(
            f"{path} is a list of im2rec, number<TAB>label<TAB>path; pass the .rec file made from it, or a list "
            f"path<TAB>label: awk -F'\\t' '{{print $NF \"\\t\" int($2)}}' {Path(path).name}"
        )
