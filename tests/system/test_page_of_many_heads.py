"""The page of more heads than colours: the rule of nine, the filter, and heads that hold 0 bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from experiments import compare
from tests.experiments.made_runs import made_run
from tests.system.test_page import SIZES, Axe, choose, markers, opened

pytestmark = pytest.mark.system
LIMIT = 9
HEADS = ("full", *(f"h{number:02}" for number in range(12)))  # h11 is the best and full the worst in rank-1
LEAST = {"h00": 0, "h01": 3 * 2**10}  # bytes; the others hold 8 MiB, and full 8 GiB


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for place, head in enumerate(HEADS):
        memory = LEAST.get(head, 2**33 if head == "full" else 2**23)
        figures = {"memory/head_bytes": memory, "head/step_ms": 50.0 - place}
        made_run(folder / "runs" / head, head, rank1=0.5 + 0.03 * place, figures=figures)
    found = compare.show([folder / "runs"])
    assert found is not None
    compare.write_files(*found, folder)
    return folder / "comparison.html"


@pytest.fixture(params=SIZES)
def page(request, browser, made) -> Iterator[Page]:
    yield from opened(browser, made, SIZES[request.param])


def on(page: Page) -> set[str]:
    """Return the heads whose boxes are checked."""
    return set(page.locator("#heads input:checked").evaluate_all("boxes => boxes.map((box) => box.dataset.head)"))


def colours(page: Page) -> dict[str, str]:
    """Return the colours of the heads that are shown, from the filter."""
    found = {}
    for head in on(page):
        marker = page.locator(f"#heads label:has(input[data-head={head}]) polygon")
        found[head] = str(marker.get_attribute("stroke"))
    return found


def box(page: Page, head: str):
    return page.locator(f"#heads input[data-head={head}]")


def test_the_full_head_and_the_best_others_are_shown_at_first(page):
    assert on(page) == {"full", *HEADS[-8:]}
    assert page.locator("#heads label").count() == page.locator("#figures tbody tr").count() == len(HEADS)
    assert markers(page, "against-time") == markers(page, "against-memory") == LIMIT
    expect(page.locator("#several")).to_contain_text("9 of 13 heads are shown, and at most 9 at once.")
    expect(page.locator("#several")).to_contain_text("At first: the full head, and those best in rank-1.")
    assert len(set(colours(page).values())) == LIMIT
    assert Axe().run(page).violations_count == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_another_head_is_shown_after_one_is_hidden_and_colours_stay(page):
    before = colours(page)
    expect(box(page, "h00")).to_be_disabled()
    expect(page.locator("#figures input[data-group='1']")).to_be_disabled()  # h00 in the table
    box(page, "h05").uncheck()
    expect(box(page, "h00")).to_be_enabled()
    box(page, "h00").check()
    expect(box(page, "h05")).to_be_disabled()
    after = colours(page)
    assert after.pop("h00") == before.pop("h05") and after == before
    box(page, "h11").uncheck()
    box(page, "h05").check()
    again = colours(page)
    assert again["h05"] == before["h11"] and again["h00"] not in {again[head] for head in again if head != "h00"}
    assert markers(page, "against-time") == LIMIT


def test_buttons_show_the_best_by_the_chosen_figure_or_none(page):
    page.locator("#show-none").click()
    assert on(page) == set() and markers(page, "against-time") == 0
    expect(page.locator("#several")).to_contain_text("0 of 13 heads")
    choose(page, "quality", "head memory")
    page.locator("#show-best").click()
    assert {"full", "h00", "h01"} < on(page) and len(on(page)) == LIMIT


def test_a_name_in_a_legend_hides_its_head(page):
    page.locator("#curves").scroll_into_view_if_needed()
    figure = page.locator("figure:has(#curves)")
    assert figure.locator(".legend button").count() == LIMIT
    figure.get_by_role("button", name="h11").click()
    assert "h11" not in on(page) and markers(page, "against-time") == LIMIT - 1


def test_every_head_has_a_marker_of_its_own(page):
    points = page.locator("#heads polygon").evaluate_all("all => all.map((one) => one.getAttribute('points'))")
    assert len(set(points)) == len(HEADS)


def test_a_head_of_0_bytes_is_on_the_logarithmic_axis(page):
    for out, into in (("h05", "h00"), ("h06", "h01")):
        box(page, out).uncheck()
        box(page, into).check()
    plot = page.locator("#against-memory")
    assert markers(page, "against-memory") == LIMIT
    expect(plot.locator(".xtitle")).to_have_text("head memory, logarithmic")
    labels = plot.locator(".xtick text").all_text_contents()
    assert labels[0] == "0 B" and all(label.endswith((" KiB", " MiB", " GiB")) for label in labels[1:])
    points = page.evaluate("""() => Object.fromEntries(document.getElementById('against-memory').data
        .filter((trace) => trace.meta).map((trace) => [trace.meta.name, trace.x[0]]))""")
    begin, end = page.evaluate("document.getElementById('against-memory').layout.xaxis.range")
    assert 10**begin < points["h00"] < points["h01"] < points["h11"] < points["full"] < 10**end
    assert (points["h01"], points["h11"], points["full"]) == (3 * 2**10, 2**23, 2**33)
    expect(page.locator("#against-memory-note")).to_have_text(
        "Memory floor: 0 B (h00); the least above 0: 3.0 KiB (h01). 0 B is left of the dotted line"
    )
    expect(plot.locator(".annotation")).to_have_text("floor")
    page.locator("#show-none").click()
    box(page, "h00").check()
    assert markers(page, "against-memory") == 1 and plot.locator(".xtick text").all_text_contents() == ["0 B"]
