"""The page of a comparison in a real browser without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from experiments import compare
from tests.experiments.made_runs import made_run

pytestmark = pytest.mark.system
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
HEADS = ("full", "pfc", "ffc", "forest")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Create a page of all heads with three seeds, a sweep, another problem, a crashed run and an odd name."""
    folder = tmp_path_factory.mktemp("page")
    runs = folder / "runs"
    for place, head in enumerate(HEADS):
        for seed in range(3):
            made_run(runs / head / str(seed), head, seed=seed, rank1=0.7 + 0.05 * place + 0.01 * seed)
    for rate in (0.05, 0.5):
        for seed in range(3):
            options = {"sample_rate": rate}
            made_run(runs / f"{rate}" / str(seed), seed=seed, rank1=0.75 + 0.1 * rate + 0.01 * seed, options=options)
    made_run(runs / "more", "full", num_classes=5000, rank1=0.5)
    made_run(runs / "crashed", seed=7, status="failed")
    made_run(runs / "</script><b>odd", seed=8, options={"backbone": "</script><b>odd<!--<script>"})
    found = compare.show([runs])
    assert found is not None
    compare.write_files(*found, folder)
    return folder / "comparison.html"


@pytest.fixture(params=SIZES)
def page(request, browser, made) -> Iterator[Page]:
    yield from opened(browser, made, SIZES[request.param])


def opened(browser: Browser, made: Path, size: tuple[int, int]) -> Iterator[Page]:
    """Open a page without a network; any message of the console is an error."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    page = context.new_page()
    said: list[Any] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto(made.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    context.close()
    assert said == []


def drawn(page: Page, plot: str) -> int:
    """Return the number of points in a plot."""
    return page.locator(f"#{plot} .scatterlayer .points path").count()


def markers(page: Page, plot: str) -> int:
    """Return the number of groups in a scatter plot, without the points of seeds."""
    return page.locator(f"#{plot} .scatterlayer .trace").evaluate_all(
        "traces => traces.filter((trace) => trace.querySelectorAll('.points path').length === 1).length"
    )


def choose(page: Page, select: str, label: str) -> None:
    page.locator(f"#{select}").select_option(label=label)


def test_all_heads_are_shown_and_all_plots_drawn(page):
    assert sorted(page.locator("#heads label").all_inner_texts()) == sorted(f" {name}" for name in HEADS)
    assert page.locator("#figures tbody tr").count() == 7
    assert markers(page, "against-time") == markers(page, "against-memory") == 7
    assert page.locator("#against-time .scatterlayer .js-line").count() == 1  # the Pareto front
    assert drawn(page, "against-time") == 7 + 6 * 3  # and three seeds of each group but one
    assert drawn(page, "option-cost") == drawn(page, "option-quality") == 2
    assert drawn(page, "curves") == 7 * 10
    assert page.locator("#curves .scatterlayer .fills path").count() >= 6  # bands of spread
    for plot in page.locator(".plot").all():
        box = plot.locator(".main-svg").first.bounding_box()
        assert box["height"] > 250 and box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_point_has_a_hover_text(page):
    page.locator("#against-time").scroll_into_view_if_needed()
    point = page.locator("#against-time .scatterlayer .points path").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    hover_text = page.locator("#against-time .hoverlayer .hovertext")
    expect(hover_text).to_contain_text("rank-1")
    expect(hover_text).to_contain_text("runs")


def test_filters_remove_heads_and_groups_from_plots(page):
    page.locator("#heads input[data-head=pfc]").uncheck()
    assert markers(page, "against-time") == 3 and drawn(page, "curves") == 30
    assert page.locator("#figures tr.hidden").count() == 4
    page.locator("#figures tr", has_text="full").locator("input").uncheck()
    assert markers(page, "against-memory") == 2
    page.locator("#heads input[data-head=pfc]").check()
    assert markers(page, "against-time") == 6
    for head in HEADS:
        page.locator(f"#heads input[data-head={head}]").uncheck()
    expect(page.locator("#against-time")).to_contain_text("Nothing to draw")
    page.locator("#heads input[data-head=ffc]").check()
    assert markers(page, "against-time") == 1
    expect(page.locator("#against-time")).not_to_contain_text("Nothing to draw")


def test_choices_change_what_is_drawn(page):
    choose(page, "quality", "head memory")
    expect(page.locator("#against-time .ytitle")).to_have_text("head memory, logarithmic")
    expect(page.locator("#differences thead")).to_contain_text("head memory")
    choose(page, "time-axis", "images/s")
    expect(page.locator("#against-time .xtitle")).to_have_text("images/s")
    choose(page, "curve", "own loss")
    expect(page.locator("#curves .ytitle")).to_have_text("own loss")
    choose(page, "curve-axis", "s of training")
    expect(page.locator("#curves .xtitle")).to_have_text("s of training")
    page.locator("#problem").select_option(index=1)
    assert page.locator("#figures tbody tr").count() == 1 and drawn(page, "curves") == 10


def test_a_column_sorts(page):
    button = page.locator("#figures button[data-figure='val/rank1']")
    for turn, name in (("descending", "forest"), ("ascending", "full")):
        page.locator("#figures button[data-figure='val/rank1']").click()
        assert button.locator("xpath=..").get_attribute("aria-sort") == turn
        expect(page.locator("#figures tbody tr").first).to_contain_text(name)


def test_the_page_judges_as_the_command_does(browser, tmp_path):
    """Compare the verdicts on six heads: pairs of seeds, corrected for their number, and equivalent ones."""
    made = {"full": (0.9,) * 4, "pfc": (0.89, 0.88, 0.88, 0.87), "far": (0.8, 0.81, 0.8, 0.81)}
    made |= {f"other{number}": (0.897, 0.902, 0.898, 0.901) for number in range(3)}
    for head, values in made.items():
        for seed, value in enumerate(values):
            made_run(tmp_path / "runs" / f"{head}-{seed}", head, seed=seed, rank1=value)
    found = compare.show([tmp_path / "runs"], within=0.5)
    assert found is not None
    compare.write_files(*found, tmp_path)
    comparison, _ = found
    figure = next(figure for figure in comparison.figures if figure.name == "val/rank1")
    expected = {
        comparison.groups[i].head: {True: "more than noise", False: "not distinguishable"}[bool(verdict.beyond_noise)]
        + ", within 0.5 points" * verdict.equivalent
        for i, verdict in comparison.against(figure, 0).items()
    }
    assert set(expected.values()) == {
        "more than noise",
        "not distinguishable",
        "not distinguishable, within 0.5 points",
    }
    for page in opened(browser, tmp_path / "comparison.html", SIZES["desktop"]):
        lines = [line.split("\t") for line in page.locator("#differences tbody tr").all_inner_texts()]
        assert {cells[0].strip(): cells[-1] for cells in lines} == expected | {"full": "the reference"}
        table = {line.split("\t")[0]: line for line in page.locator("#figures tbody tr").all_inner_texts()}
        marks = {name.split(" (")[0].strip(): line.split("\t")[1][-1] for name, line in table.items()}
        assert marks == {"full": "★", "pfc": "≈", "far": "8"} | {f"other{number}": "=" for number in range(3)}
        expect(page.locator("#within")).to_have_text("0.5")


def test_differences_and_left_out_runs_are_reported(page):
    lines = {line.split("\t")[0].strip(): line for line in page.locator("#differences tbody tr").all_inner_texts()}
    assert "the reference" in lines["full backbone=tiny"]
    assert "more than noise" in lines["forest backbone=tiny"]
    assert "too few runs to decide" in lines["pfc backbone=</script><b>odd<!--<script>"]
    notes = page.locator("#notes").inner_text()
    assert "Left out: crashed (failed at step 100)" in notes and "2 problems" in notes


def test_the_first_lines_say_what_was_trained_and_what_came_out(page):
    assert (
        page.locator("#trained").inner_text().startswith("Trained on unnamed data, 1,000 classes, batches of 10, 100")
    )
    outcome = page.locator("#outcome").inner_text()
    assert outcome.startswith("Best in rank-1: forest backbone=tiny (0.86). ")
    page.locator("#problem").select_option(index=1)
    expect(page.locator("#trained")).to_contain_text("5,000 classes")
    expect(page.locator("#outcome")).to_have_text("No group is ahead in rank-1.")


def test_columns_say_what_is_better_and_what_they_are(page):
    button = page.locator("#figures button[data-figure='val/rank1']")
    assert button.inner_text() == "rank-1 ↑" and "nearest other image" in button.get_attribute("title")
    loss = page.locator("#figures button[data-figure='train/loss']")
    assert loss.inner_text() == "own loss" and "not comparable" in loss.get_attribute("title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page, scheme):
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    expect(page.locator("#curves .main-svg").first).to_have_css("background-color", background)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
