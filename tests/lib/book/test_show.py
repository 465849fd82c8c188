"""Figures: what their HTML says, and that sliders and live views follow their controls."""

import base64
import html
import io
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from course_lib.book import check, show


@pytest.fixture
def shown(monkeypatch):
    """What the functions display, in order."""
    seen = []
    monkeypatch.setattr(show, "display", seen.append)
    return seen


@pytest.fixture
def page():
    """An empty page of a browser."""
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        executable = os.environ.get("CHROMIUM") or found
        if executable is None:
            pytest.skip("no Chromium: install it, or set CHROMIUM to its path")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def drawing(value=1.0):
    fig, ax = plt.subplots()
    ax.plot([0, value], [0, 1])
    ax.set(xlabel="x", ylabel="y", title=f"value {value}")
    return fig


def svgs(fragment: str) -> list[ElementTree.Element]:
    """The pictures in a fragment, parsed: a fault in their XML is an error."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", fragment, re.S)]


def test_a_figure_says_what_it_shows_and_takes_the_pages_colour(shown):
    show.figure(drawing(), 'a line, "rising" & <straight>')
    (svg,) = svgs(shown[0].data)
    assert svg.get("role") == "img" and svg.get("aria-label") == 'a line, "rising" & <straight>'
    assert svg.get("width") is None and "max-width" in svg.get("style")
    assert "#000000" not in shown[0].data and "currentColor" in shown[0].data
    assert not plt.get_fignums()  # nothing is left open to be shown twice


def test_two_figures_on_a_page_share_no_id(shown):
    show.figure(drawing(), "one")
    show.figure(drawing(), "two")
    ids = [e.get("id") for h in shown for svg in svgs(h.data) for e in svg.iter() if e.get("id")]
    assert ids and len(ids) == len(set(ids))
    for h in shown:
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', h.data))
        assert {a or b for a, b in used} <= set(ids)


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match="alt must say"):
        show.figure(drawing(), alt)


def test_marks_with_tips_can_be_reached_and_say_what_they_are(shown):
    fig, ax = plt.subplots()
    ax.plot([1], [2], "o", gid="first")
    ax.plot([3], [4], "s", gid="second one")
    show.figure(fig, "two marks", {"first": 'a "circle" & more', "second one": "a square"})
    (svg,) = svgs(shown[0].data)
    assert svg.get("role") == "group" and svg.get("aria-label") == "two marks"
    marks = [e for e in svg.iter() if e.get("tabindex") == "0"]
    assert [e.get("aria-label") for e in marks] == ['a "circle" & more', "a square"]
    assert [e[0].text for e in marks] == ['a "circle" & more', "a square"]  # <title>
    assert [e.get("id").split("-", 1)[1] for e in marks] == ["first", "second one"]
    assert all(e.get("role") == "img" and e.get("onfocus") and e.get("onmouseenter") for e in marks)
    assert shown[0].data.endswith("</figcaption></figure>")  # which the marks' handlers write into


def test_a_tip_for_no_mark_is_refused():
    with pytest.raises(ValueError, match="one mark of the figure must have the gid 'lost'; 0 have"):
        show.figure(drawing(), "a line", {"lost": "nothing"})


ROWS = [
    {"name": "b & c", "size": show.Cell("2.0", 2.0)},
    {"name": "a", "size": show.Cell("10.0", 10.0)},
    {"name": "d", "size": show.Cell("–", None)},
]


def test_a_table_has_heads_that_sort_and_cells_with_their_values(shown):
    show.table(ROWS, "Sizes of <things>")
    page = ElementTree.fromstring(shown[0].data)
    assert page.get("role") == "region" and page.get("aria-label") == "Sizes of <things>"
    assert page.get("tabindex") == "0" and page.find(".//caption/span").text == "Sizes of <things>"
    assert [b.text for b in page.findall(".//thead/tr/th/button")] == ["name", "size"]
    assert [e.text for e in page.findall(".//tbody/tr/th[@scope='row']")] == ["b & c", "a", "d"]
    assert [(e.text, e.get("data-value")) for e in page.iter("td")] == [
        ("2.0", "2.0"),
        ("10.0", "10.0"),
        ("–", ""),
    ]


def test_pressing_a_head_sorts_numbers_as_numbers_and_gaps_last(shown, page):
    show.table(ROWS, "Sizes")
    page.set_content(shown[0].data)
    names = lambda: page.locator("tbody th").all_inner_texts()
    sorts = lambda: page.eval_on_selector_all("thead th", "e => e.map(h => h.getAttribute('aria-sort'))")
    assert names() == ["b & c", "a", "d"] and sorts() == [None, None]
    for head, order, direction in (
        ("size", ["b & c", "a", "d"], [None, "ascending"]),
        ("size", ["a", "b & c", "d"], [None, "descending"]),
        ("name", ["a", "b & c", "d"], ["ascending", None]),
    ):
        page.get_by_role("button", name=head).click()
        assert names() == order and sorts() == direction


def test_a_mark_tells_its_tip_to_keys_and_to_the_pointer(shown, page):
    fig, ax = plt.subplots()
    ax.plot([1], [1], "o", gid="low")
    ax.plot([2], [2], "o", gid="high")
    show.figure(fig, "two marks", {"low": "the first", "high": "the second"})
    page.set_content(shown[0].data)
    told = page.locator("figcaption")
    page.keyboard.press("Tab")
    assert told.inner_text() == "the first"
    page.get_by_role("img", name="the second").hover()
    assert told.inner_text() == "the second"


@pytest.mark.parametrize(
    ("rows", "caption", "said"),
    [
        ([], "c", "rows must be at least one"),
        ([{"a": "1"}, {"b": "1"}], "c", "all with the same heads"),
        ([{"a": "1"}], " ", "caption must say"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(rows, caption, said):
    with pytest.raises(ValueError, match=said):
        show.table(rows, caption)


def test_text_is_shown_as_markdown(shown):
    show.text("**bold**")
    assert shown[0].data == "**bold**"


def test_slider_holds_all_frames_and_shows_the_first(shown):
    show.slider(drawing, [1, 2.5, 4], "height", "a line")
    fragment = shown[0].data
    assert [s.get("aria-label") for s in svgs(fragment)] == [
        f"a line (height: {v})" for v in ("1", "2.5", "4")
    ]
    assert re.findall(r'<div class="frame"( hidden)?>', fragment) == ["", " hidden", " hidden"]
    values = json.loads(html.unescape(re.search(r'data-values="([^"]*)"', fragment)[1]))
    assert values == ["1", "2.5", "4"] and 'max="2"' in fragment
    assert "http" not in re.sub(r"http://www.w3.org/[\w/]*", "", fragment)


def test_a_slider_takes_values_with_quotes_and_brackets(shown):
    values = ['a "b" <c>', "it's & more"]
    draw = lambda value: drawing(float(values.index(value)))
    show.slider(draw, values, 'the "way"', "a line")
    read = HTMLParser()
    told: dict[str, dict] = {}
    read.handle_starttag = lambda tag, attributes: told.setdefault(tag, dict(attributes))
    read.feed(shown[0].data)
    assert json.loads(told["input"]["data-values"]) == values
    assert told["input"]["aria-valuetext"] == values[0]
    assert f"<output>{html.escape(values[0])}</output>" in shown[0].data


def test_a_slider_that_cannot_move_is_refused():
    with pytest.raises(ValueError, match="values must hold at least two"):
        show.slider(drawing, [1], "height", "a line")


def test_live_draws_again_when_a_control_moves(shown):
    value = ipywidgets.FloatSlider(min=1, max=9)
    show.live(drawing, "a line", value=value)
    box = shown[0]
    before = box.children[-1].value
    value.value = 5.0
    after = box.children[-1].value
    assert "value 1.0" in before and "value 5.0" in after
    # an Output widget would make nbclient answer the kernel, which has made runs hang
    assert not any(isinstance(w, ipywidgets.Output) for w in box.children)


def test_images_are_laid_out_in_rows(shown, monkeypatch):
    sheets, imshow = [], Axes.imshow

    def spy(ax, sheet, **style):
        sheets.append(sheet)
        return imshow(ax, sheet, **style)

    monkeypatch.setattr(Axes, "imshow", spy)
    batch = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 1, 4, 5) / 10
    show.images(batch, "grey", columns=3, titles=list("abcdefg"))
    (sheet,) = sheets
    there = np.isfinite(sheet)
    assert there.sum() == 7 * 4 * 5  # every pixel once; the rest is transparent
    rows = np.unique(np.nonzero(there)[0])
    first = [np.unique(sheet[row][there[row]]) for row in (rows[0], rows[4], rows[8])]
    np.testing.assert_allclose(np.concatenate(first), np.arange(7) / 10, rtol=1e-6)
    (svg,) = svgs(shown[0].data)
    assert [e.text for e in svg.iter() if e.tag.endswith("text")] == list("abcdefg")


def test_images_keep_their_grey_levels(shown):
    show.images(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8), "grey")
    (svg,) = svgs(shown[0].data)
    (picture,) = [e for e in svg.iter() if e.tag.endswith("image")]
    link = next(value for name, value in picture.attrib.items() if name.endswith("href"))
    pixels = plt.imread(io.BytesIO(base64.b64decode(link.split(",")[1])))
    opaque = pixels[pixels[..., 3] == 1]
    assert {round(float(v), 1) for v in np.unique(opaque[:, 0])} == {0.0, 0.5, 1.0}


def test_images_keep_their_colours(shown):
    colours = torch.tensor([[-1.0, 0.0, 1.0], [1.0, -1.0, -0.5]])
    show.images(colours.view(2, 3, 1, 1).expand(2, 3, 90, 70), "coloured", columns=2, titles=["a", "b"])
    (svg,) = svgs(shown[0].data)
    (picture,) = [e for e in svg.iter() if e.tag.endswith("image")]
    link = next(value for name, value in picture.attrib.items() if name.endswith("href"))
    pixels = plt.imread(io.BytesIO(base64.b64decode(link.split(",")[1])))
    opaque = pixels[pixels[..., 3] == 1][:, :3]
    assert len(opaque) == 2 * 90 * 70  # every pixel once; the rest is transparent
    assert (pixels[pixels[..., 3] < 1][:, 3] == 0).all()
    found = {tuple(round(float(v), 1) for v in p) for p in np.unique(opaque, axis=0)}
    assert found == {(0.0, 0.5, 1.0), (1.0, 0.0, 0.2)}


def test_sheets_can_be_frames_of_a_slider(shown):
    show.slider(lambda v: show.sheet(v * torch.ones(1, 3, 8, 8), columns=1), [0.1, 0.9], "level", "a square")
    assert len(svgs(shown[0].data)) == 2


def test_images_of_sixteen_bits_are_shown(shown):
    batch = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    show.images(batch.bfloat16(), "Two images")
    show.images(batch.bfloat16().float(), "Two images")
    first, second = (re.search(r"base64,\s*([^\"]+)", html.data)[1] for html in shown)
    assert first == second


def test_the_style_is_set_when_told_and_a_figure_has_it_anyway(shown):
    with plt.rc_context():
        plt.rcdefaults()
        show.images(torch.zeros(1, 1, 4, 4), "One image", titles=["a title"])
        assert ">a title<" in shown[0].data  # text stays text, as `svg.fonttype` says
        assert plt.rcParams["svg.fonttype"] == "path"
        show.set_style()
        assert plt.rcParams["svg.fonttype"] == "none"


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="batch must have shape"):
        show.images(torch.zeros(shape), "grey")


@pytest.mark.parametrize("seed", range(5))
def test_ellipse_is_two_standard_deviations_out(seed):
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(2, 2, generator=g, dtype=torch.float64)
    mean, covariance = torch.randn(2, generator=g, dtype=torch.float64), factor @ factor.T
    fig, ax = plt.subplots()
    show.ellipse(ax, mean, covariance)
    patch = ax.patches[0]
    corners = patch.get_patch_transform().transform([[1, 0], [0, 1], [-1, 0], [0, -1]])
    plt.close(fig)
    away = corners - mean.numpy()
    distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance.numpy()), away)
    np.testing.assert_allclose(distance, 4, rtol=1e-8)


def test_source_is_shown_as_it_stands(shown):
    show.show_source(check)
    assert shown[0].data.startswith("```python\ndef check(") and shown[0].data.endswith("```")


def test_the_plane_has_equal_units_and_names_on_its_outer_edges():
    fig, axes = plt.subplots(2, 2)
    show.plane(axes, xlim=(-3, 1))
    assert [ax.get_xlabel() for ax in axes.flat] == ["", "", "first coordinate", "first coordinate"]
    assert [ax.get_ylabel() for ax in axes.flat] == ["second coordinate", "", "second coordinate", ""]
    assert all(ax.get_aspect() == 1 and ax.get_xlim() == (-3, 1) for ax in axes.flat)
    plt.close(fig)
    fig, ax = plt.subplots()
    show.plane(ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("first coordinate", "second coordinate")
    plt.close(fig)
