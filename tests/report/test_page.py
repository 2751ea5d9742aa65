"""The report's page in a real browser: no network, no errors, hostile text inert, the filter, a phone."""

import json
import re

import pytest

from posttrain.report import plots, style
from posttrain.report.__main__ import main
from posttrain.report.compare import compare
from posttrain.report.runs import find
from tests.helpers.report_runs import HOSTILE, write_all, write_held_out, write_run


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report on runs of every kind, some of whose texts are hostile."""
    folder = tmp_path_factory.mktemp("report")
    outputs = write_all(folder / "outputs")
    config = (outputs / "kto-1" / "config.yaml").read_text()
    (outputs / "kto-1" / "config.yaml").write_text(config + "data: " + json.dumps({"path": HOSTILE}) + "\n")
    assert main([str(outputs), "--out", str(folder / "out")]) == 0
    return folder / "out" / "index.html"


def opened(browser, file, width, height):
    """The page, and what it said on the console, asked of the network, or raised."""
    page = browser.new_page(viewport={"width": width, "height": height})
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: trouble.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto(file.as_uri())
    return page, trouble


@pytest.mark.browser
def test_the_page_works_in_a_browser(browser, page_file):
    page, trouble = opened(browser, page_file, 1200, 900)
    assert page.title() == "posttrain: runs compared", "no script in a sample ran"
    assert page.locator("figure svg").count() == 4
    assert page.locator("body script").count() == 1
    assert HOSTILE in page.locator("article", has_text="dpo beta=0.1").first.inner_text()
    # Side by side: the start and the eight compared groups on the first prompt, in columns.
    answers = page.locator("details").first.locator("article")
    heads = answers.locator("h3").all_inner_texts()
    assert heads[:4] == ["the starting policy", "sft", "dpo beta=0.01", "dpo beta=0.1"]
    first, second = (answers.nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] < second["x"]
    assert page.locator("p.answer").first.inner_text().startswith("At any KL, dpo beta=0.01 (seed 1) is best")

    row = page.locator("#runs tr", has=page.get_by_role("rowheader", name="dpo beta=0.1", exact=True))
    marks = page.locator("#frontier .method-dpo")
    assert row.is_visible()
    assert marks.count() > 0
    page.locator("input[data-method=dpo]").uncheck()
    assert not row.is_visible()
    assert all(style == "none" for style in marks.evaluate_all("all => all.map(one => one.style.display)"))
    assert page.locator("article[data-of=dpo]:visible").count() == 0
    assert page.locator("article[data-of=ppo]:visible").count() > 0
    # Every table with a method in it: fits and alarms too.
    assert page.locator("#overoptimisation tr:visible", has_text="dpo").count() == 0
    assert page.locator("#overoptimisation tr:visible", has_text="ppo").count() > 0
    alarm = page.locator("#alarms tr", has_text="ppo-1")
    assert alarm.is_visible()
    page.locator("input[data-method=ppo]").uncheck()
    assert not alarm.is_visible()
    page.locator("input[data-method=dpo]").check()
    assert row.is_visible()
    assert trouble == []


@pytest.mark.browser
def test_a_phone_scrolls_only_downwards(browser, page_file):
    page, trouble = opened(browser, page_file, 360, 780)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .frame') && "
        "e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.locator("#runs .scroll").evaluate("e => e.scrollWidth > e.clientWidth"), (
        "a wide table scrolls in itself"
    )
    first, second = (page.locator("details article").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] < second["y"], "one below the other"
    assert trouble == []


@pytest.mark.browser
def test_a_long_heading_makes_no_phone_scroll_sideways(browser, tmp_path):
    """Without a reward the picture is called after the held-out metric, and so is its link."""
    held_out = {"eval_rewards/accuracies": (0.0, 0.8), "eval_rewards/margins": (0.0, 0.5), "probe/kl": (0.0, 2.0)}
    write_held_out(tmp_path / "a", "dpo", held_out)
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    page, trouble = opened(browser, tmp_path / "out" / "index.html", 360, 780)
    assert page.locator("nav a", has_text="Preference accuracy (implicit reward) against KL").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert trouble == []


def test_the_file_holds_everything_and_forbids_the_rest(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.findall(r'\s(?:src|href)="(?!#|data:)[^"]*', text) == [], "nothing to load, and links only inside"
    assert "<img" not in text
    assert text.count("<script") == 1
    assert text.count('class="method-dpo"') > 5
    assert 'id="method-' not in text, "an id in several pictures would not be one"


def test_names_of_runs_break_between_words_and_never_within_a_number(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "dpo beta=0.01" in text
    assert "trainer.<wbr>args.<wbr>beta" in text
    assert not re.search(r"\d\.<wbr>\d", text)


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_the_legend_of_long_names_is_within_the_picture(panels, tmp_path):
    """Twelve runs, whose names are as long as a legend shows them."""
    for i, kind in enumerate(["dpo", "kto", "ppo", "grpo"] * 3):
        args = {"beta": i + 0.5, "optim": "a_name_of_more_than_forty_characters_" + str(i)}
        write_run(tmp_path / f"{kind}-{i}", kind, [(0, 0, 0.1), (5, 1.0, 0.2), (9, 2.0, 0.3)], args=args)
    groups = compare(find([tmp_path]), None, [], None).groups
    figure, _ = style.panels(panels, 3, (3.7, 2.7))
    style.legend(figure, style.lines(groups), width=plots.LEGEND)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    style.close({"one": figure})
