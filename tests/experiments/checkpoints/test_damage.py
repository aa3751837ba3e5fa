"""Any change to the bytes of a checkpoint is reported, by reading it and by `experiments.verify`."""

import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import provenance, verify
from experiments.checkpoints import blocks
from experiments.checkpoints.checkpoint import write
from experiments.checkpoints.manifest import InitialRows, digest
from experiments.checkpoints.storage import Folder
from experiments.checkpoints.stored import ROWS, Stored
from experiments.launching.processes import Processes
from heads import PartialFC, SubCenterFC

ONE = Processes(0, 1, torch.device("cpu"))
FILE, MANIFEST = "process-0.bin", "manifest.json"
C, D = 300, 16


def state() -> tuple[dict, dict, dict[str, Tensor]]:
    """Return shared state, local state and rows."""
    generator = torch.Generator().manual_seed(1)
    rows = {name: torch.randn(C, D, generator=generator) for name in (ROWS, "head.centers.momentum")}
    shared = {"state_dict": {"backbone.weight": torch.randn(4, 3, generator=generator)}, "step": 7}
    return shared, {"random": torch.arange(9)}, rows


def written(folder: Path, change: Callable[[dict, dict, dict[str, Tensor]], None] = lambda *_: None) -> Path:
    """Write a checkpoint, with a changed state if `change` is given."""
    shared, own, rows = state()
    change(shared, own, rows)
    write(shared, own, rows, Folder(folder), "step-00000007", ONE, InitialRows(0, D))
    return folder / "step-00000007"


def everything(path: Path) -> tuple:
    """Return everything that a resume reads, as comparable bytes and numbers."""
    stored = Stored(str(path))
    shared, own = stored.shared(ONE), stored.local(ONE)
    rows = {name: torch.zeros(C, D) for name in state()[2]}
    stored.fill(rows, ONE)
    tensors = [*shared["state_dict"].values(), own["random"], *(rows[name] for name in sorted(rows))]
    return shared["step"], *(each.tolist() for each in tensors)


def flip(path: Path, place: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def edited(path: Path, change: Callable[[dict], None]) -> None:
    """Change a manifest and give it a valid digest."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    manifest["sha256"] = digest(json.dumps(manifest["content"], sort_keys=True, separators=(",", ":")).encode())
    (path / MANIFEST).write_text(json.dumps(manifest))


def at(path: Path, tensor: str) -> int:
    """Return where the bytes of a tensor begin."""
    return json.loads((path / MANIFEST).read_text())["content"]["tensors"][tensor]["blocks"][0][1]


def old(path: Path) -> None:
    (path / MANIFEST).rename(path / ".metadata")


def elsewhere(manifest: dict) -> None:
    manifest["content"]["tensors"][ROWS]["blocks"][0][0] = "../secret.bin"


def of_version_0_2(manifest: dict) -> None:
    manifest["format"], manifest["content"]["version"] = 2, "0.2.0"


DAMAGE = {
    "bit in the rows": (lambda p: flip(p / FILE, at(p, ROWS) + 5), rf"{FILE} .*in rows 0 to 299 of {ROWS}"),
    "bit in the momentum": (lambda p: flip(p / FILE, at(p, "head.centers.momentum")), "of head.centers.momentum"),
    "bit in the state": (lambda p: flip(p / FILE, at(p, "lightning") + 3), "of lightning"),
    "bit in the weights": (lambda p: flip(p / FILE, at(p, "lightning/0")), "of lightning/0"),
    "bit in a process's own": (lambda p: flip(p / FILE, at(p, "process-0-of-1")), "of process-0-of-1"),
    "file cut short": (
        lambda p: (p / FILE).write_bytes((p / FILE).read_bytes()[:-9]),
        rf"file {FILE} is damaged: it has [\d,]+ of [\d,]+ bytes",
    ),
    "file missing": (lambda p: (p / FILE).unlink(), f"file {FILE} of .* bytes is missing"),
    "bit in the manifest": (lambda p: flip(p / MANIFEST, -60), f"{MANIFEST} is damaged"),
    "bit in the manifest's digest": (lambda p: flip(p / MANIFEST, 30), f"{MANIFEST} is damaged: .* digest"),
    "manifest cut short": (lambda p: (p / MANIFEST).write_text('{"format": 3'), f"{MANIFEST} is damaged"),
    "manifest empty": (lambda p: (p / MANIFEST).write_text(""), f"{MANIFEST} is damaged"),
    "manifest missing": (lambda p: (p / MANIFEST).unlink(), f"has no {MANIFEST}"),
    "block in another folder": (lambda p: edited(p, elsewhere), r"is damaged .*'\.\./secret\.bin'"),
    "version 0.1": (old, r"written by version 0\.1, whose checkpoints .* finish or export it with that version"),
    "version 0.2.0": (
        lambda p: edited(p, of_version_0_2),
        r"written by version 0\.2\.0 in format 2, .* finish or export it with version 0\.2\.0, or train",
    ),
    "format of the future": (
        lambda p: edited(p, lambda manifest: manifest.update(format=4)),
        "in format 4, and this version reads format 3",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_when_a_checkpoint_is_read(name, whole, tmp_path):
    damage, words = DAMAGE[name]
    path = shutil.copytree(whole, tmp_path / whole.name)
    assert everything(path) == everything(whole)
    damage(path)
    refused = f"^resume={re.escape(str(path))} cannot be used"
    with pytest.raises(ValueError, match=f"{refused}: .*{words}.*; there is no other checkpoint in the folder$"):
        everything(path)
    shutil.copytree(whole, path.with_name("step-00000003"))
    with pytest.raises(ValueError, match=r"; remove it, and use resume=.*/step-00000003$"):
        everything(path)


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_reports_damage(name, whole, tmp_path, capsys, monkeypatch):
    damage, words = DAMAGE[name]
    path = shutil.copytree(whole, tmp_path / whole.name)
    damage(path)
    monkeypatch.setattr(sys, "argv", ["verify", str(path)])
    with pytest.raises(SystemExit) as ended:
        verify.main()
    printed = capsys.readouterr()
    assert ended.value.code == 1 and "Traceback" not in printed.err
    if name == "manifest missing":
        words = "holds no checkpoint"
    assert re.search(words, re.sub(r"\s+", " ", printed.out + printed.err))


def test_verify_accepts_an_intact_checkpoint(whole, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verify", str(whole), str(whole.parent)])
    with pytest.raises(SystemExit) as ended:
        verify.main()
    printed = capsys.readouterr()
    assert ended.value.code == 0 and not printed.err and printed.out.count("All files are intact") == 2
    assert (
        f"written by version {provenance.about()['version']}, commit {provenance.about()['commit'] or 'unknown'}"
        in printed.out
    )


def test_any_flipped_bit_is_reported_or_changes_nothing(whole, tmp_path):
    """Bits are flipped at random positions of all files."""
    draws, expected = random.Random(0), everything(whole)
    path = shutil.copytree(whole, tmp_path / whole.name)
    unseen = 0
    for file in (FILE, MANIFEST):
        size = (path / file).stat().st_size
        for _ in range(100):
            place, bit = draws.randrange(size), draws.randrange(8)
            flip(path / file, place, bit)
            try:
                found = everything(path)
            except ValueError:
                pass
            else:
                unseen += 1
                assert found == expected, (file, place, bit)  # in white space of the manifest, for example
            flip(path / file, place, bit)
    assert unseen <= 5 and everything(path) == expected


def with_value(part: int, *names: str, value: float) -> Callable[[dict, dict, dict[str, Tensor]], None]:
    def change(*parts) -> None:
        held = parts[part]
        for name in names:
            held = held[name]
        held[2, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_value(2, ROWS, value=torch.nan), f"{ROWS} of class 2 holds NaN or Inf"),
        (with_value(2, ROWS, value=-torch.inf), f"{ROWS} of class 2 holds NaN or Inf"),
        (with_value(2, "head.centers.momentum", value=torch.inf), "momentum of class 2 holds NaN or Inf"),
        (with_value(0, "state_dict", "backbone.weight", value=torch.nan), "backbone.weight holds NaN or Inf"),
    ],
)
def test_nan_that_was_written_is_reported_as_divergence(change, words, tmp_path):
    """The message does not blame the learning rate of the resumed training."""
    path = written(tmp_path, change)
    assert verify.verify(str(path))  # the bytes are those that were written
    with pytest.raises(ValueError, match=rf"{words}, and did so when it was written: the training had diverged"):
        everything(path)


def test_large_finite_rows_are_accepted(tmp_path):
    """The sum of the rows is not finite."""

    def change(shared: dict, local: dict, rows: dict[str, Tensor]) -> None:
        rows[ROWS].fill_(3e38)

    assert everything(written(tmp_path, change))


@pytest.mark.parametrize("head", [PartialFC, SubCenterFC])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_that_were_never_written_are_drawn_on_every_read(head, dtype, tmp_path, monkeypatch):
    """A checkpoint of store=disk holds zeros for them. They are read in parts, across blocks, and completely."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 37 * 16 * 4)
    centers = head(C, D, seed=5, dtype=dtype).centers
    rows = centers.rows.clone()
    rows[100:110] += 1  # the only rows that were written
    stored_rows = torch.zeros_like(rows)
    stored_rows[100:110] = rows[100:110]
    initial = InitialRows(5, D, rows_per_class=centers.rows_per_class)
    write({"state_dict": {}}, None, {ROWS: stored_rows}, Folder(tmp_path), "step-00000001", ONE, initial)
    stored = Stored(str(tmp_path / "step-00000001"))
    for start, stop in ((0, C), (95, 105), (299, 300), (7, 7)):
        assert torch.equal(stored.read_rows(ROWS, start, stop), rows[start:stop])
    filled = {ROWS: torch.full_like(rows, 9)}
    stored.fill(filled, ONE)
    assert torch.equal(filled[ROWS], rows)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({ROWS: torch.zeros(C, D)}, r"holds the row state \['momentum', 'rows'\], .* keep \['rows'\]"),
        (
            {ROWS: torch.zeros(C, 8), "head.centers.momentum": torch.zeros(C, 8)},
            r"of shape \[300, 16\] .* this run's are \[300, 8\]",
        ),
    ],
)
def test_rows_of_another_shape_stay_unchanged(rows, words, whole):
    with pytest.raises(ValueError, match=words):
        Stored(str(whole)).fill(rows, ONE)
    assert not any(each.any() for each in rows.values())


def test_a_checkpoint_names_the_program(whole):
    manifest = json.loads((whole / MANIFEST).read_text())
    assert manifest["format"] == 3
    assert {name: manifest["content"][name] for name in ("version", "commit")} == provenance.about()


def test_the_commit_is_null_outside_of_a_checkout(tmp_path, monkeypatch):
    """Git is not called, because it would report a repository around this folder."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def never(*arguments, **options):
        raise AssertionError("git was started")

    monkeypatch.setattr("subprocess.run", never)
    assert provenance.about.__wrapped__()["commit"] is None


def test_state_that_is_not_data_fails_the_save(tmp_path):
    from experiments.checkpoints.attempts import CheckpointError

    with pytest.raises(
        CheckpointError, match=r"step-00000007 could not be written \(lightning\.odd has type object, which"
    ):
        written(tmp_path, lambda shared, local, rows: shared.update(odd=object()))
    assert not list(tmp_path.glob("*"))
