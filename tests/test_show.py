"""Figures: what their HTML says, and that sliders and live views follow their controls."""

import base64
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from course_lib import check, show


@pytest.fixture
def shown(monkeypatch):
    """What the functions display, in order."""
    seen = []
    monkeypatch.setattr(show, "display", seen.append)
    return seen


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
    show.show_source(check.check)
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
