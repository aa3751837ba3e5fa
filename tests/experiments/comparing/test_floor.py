"""The memory floor, and bytes in readable units."""

from pathlib import Path

import pytest

from experiments import compare
from experiments.comparing.comparison import Comparison
from experiments.comparing.figures import MEMORY
from experiments.comparing.floor import Floor, memory_floor
from experiments.comparing.loading import load
from experiments.comparing.page import content
from experiments.tables import readable_bytes
from tests.experiments.made_runs import made_run


def compared(folder: Path, memory: dict[str, float], **more) -> Comparison:
    for head, value in memory.items():
        made_run(folder / head, head, figures={MEMORY.name: value}, **more)
    return Comparison(load([folder])[0])


def test_the_floor_names_all_heads_that_hold_it(tmp_path):
    comparison = compared(tmp_path, {"full": 2**20, "mach": 1536, "virtual": 1536})
    assert memory_floor(comparison, "") == Floor(1536.0, "Memory floor: 1.5 KiB (mach, virtual)")


def test_a_floor_of_0_bytes_also_gives_the_least_above(tmp_path, capsys):
    comparison = compared(tmp_path, {"full": 2**20, "mach": 72 * 2**10, "none": 0})
    sentence = "Memory floor: 0 B (none); the least above 0: 72.0 KiB (mach)"
    assert memory_floor(comparison, "") == Floor(0.0, sentence)
    page = content(comparison, [])
    assert page["problems"][0]["floor"] == {"bytes": 0.0, "text": sentence} and sentence in page["notes"]
    values = {group["head"]: group["values"][page["memory"]] for group in page["groups"]}
    assert values["none"] == {"mean": 0.0, "deviation": None}
    compare.show([tmp_path])
    assert sentence in capsys.readouterr().out


def test_each_problem_has_its_floor(tmp_path):
    compared(tmp_path / "a", {"full": 2**20, "mach": 512}, num_classes=1000)
    compared(tmp_path / "b", {"full": 2**30, "mach": 1024}, num_classes=5000)
    comparison = Comparison(load([tmp_path])[0])
    floors = [memory_floor(comparison, problem) for problem in comparison.problems]
    assert [floor.bytes for floor in floors if floor] == [512.0, 1024.0]
    assert "Memory floor: 1.0 KiB (mach) on 5,000 classes" in content(comparison, [])["notes"]


def test_one_head_has_no_floor(tmp_path):
    assert memory_floor(compared(tmp_path, {"full": 2**20}), "") is None


def test_the_page_opens_with_the_sweep_metric(tmp_path):
    for place, metric in enumerate(("val/top1", "val/top1", "val/rank1")):
        made_run(tmp_path / str(place), seed=place, options={"sweep_metric": metric})
    runs, _ = load([tmp_path])
    assert content(Comparison(runs[:2]), [])["sweepMetric"] == "val/top1"
    assert content(Comparison(runs), [])["sweepMetric"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (3 * 2**30, "3.0 GiB"),
     (5 * 2**50, "5,120.0 TiB")],
)  # fmt: skip
def test_bytes_have_a_unit(value, text):
    assert readable_bytes(value) == text
