"""Small input files of protocols, and the options that name them."""

from pathlib import Path

from tests.data.made_sets import image

IMAGES = 24


def written_for(protocol: str, folder: Path) -> list[str]:
    """Write files into a folder and return the options of `protocol.NAME`. Images i and i + 12 are of one class."""
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image(number % 12))
    if protocol == "lfw":
        lines = [f"{n}.jpg\t{n + 12}.jpg\t1\n{n}.jpg\t{n + 1}.jpg\t0\n" for n in range(12)]
        (folder / "pairs.txt").write_text("".join(lines))
        return [f"protocol.lfw.source={folder / 'pairs.txt'}", "protocol.lfw.folds=3", "protocol.lfw.resamples=20"]
    # Template t is of subject t % 4, and holds images t and t + 12, in one medium if t is even.
    lines = [f"{n}.jpg {n % 12 + 100} {n if n % 2 else n % 12}\n" for n in range(IMAGES)]
    (folder / "tid_mid.txt").write_text("".join(lines))
    lines = [f"{a + 100} {b + 100} {int(a % 4 == b % 4)}\n" for a in range(12) for b in range(a)]
    (folder / "pair_label.txt").write_text("".join(lines))
    (folder / "scores.txt").write_text("".join(f"{n}.jpg 1.5 {n}.5 0.9{n}\n" for n in range(IMAGES)))
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    for name, templates in (("G1", (0, 1)), ("G2", (2, 3)), ("probes", range(4, 12))):
        lines = [f"{t + 100},{t % 4},img/{n}.jpg\n" for t in templates for n in (t, t + 12)]  # one for each image
        (folder / f"{name}.csv").write_text(header + "".join(lines))
    return [
        f"protocol.ijb.templates={folder / 'tid_mid.txt'}",
        f"protocol.ijb.pairs={folder / 'pair_label.txt'}",
        f"protocol.ijb.galleries=[{folder / 'G1.csv'},{folder / 'G2.csv'}]",
        f"protocol.ijb.probes={folder / 'probes.csv'}",
        f"protocol.ijb.scores={folder / 'scores.txt'}",
        f"protocol.ijb.images={folder}",
        "protocol.ijb.resamples=20",
    ]
