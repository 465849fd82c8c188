"""Figures for the notebooks: drawn once, read everywhere.

A figure becomes one HTML fragment with its SVG inside. Black turns into the colour of the
text around it, so that it reads on a light and on a dark page. A slider holds all its frames
and needs no kernel and no network.
"""

import html
import inspect
import io
import json
import re
import textwrap
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

# Okabe and Ito's palette, which colour-blind readers can tell apart (black left out).
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
GREY = "#808080"

STYLE = {
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "figure.figsize": (6.4, 3.6),
    "font.size": 10,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
}


def set_style() -> None:
    """Draw all figures to come in the course's style; `course_lib.book.profiles.start` calls this."""
    plt.rcParams.update(STYLE)


def _svg(figure: Figure, alt: str) -> str:
    """The figure as SVG text that takes its colour and width from the page."""
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows; got an empty text")
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    plt.close(figure)
    svg = buffer.getvalue()
    # Black becomes the page's text colour; SVG text has no colour of its own unless told.
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    width = figure.get_figwidth() * 96
    style = f"width: 100%; max-width: {width:.0f}px; height: auto; fill: currentColor"
    said = f'<svg role="img" aria-label="{html.escape(alt)}" style="{style}"'
    svg = re.sub(r'<svg(.*?) width="[^"]*" height="[^"]*"', lambda m: said + m[1], svg, count=1)
    # Several figures share a page: make the names inside each its own.
    own = uuid.uuid4().hex[:8]
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}-", svg)


def figure(drawn: Figure, alt: str, tips: Mapping[str, str] | None = None) -> None:
    """Show a matplotlib figure.

    Args:
        drawn: the figure.
        alt: what it shows, in words, for those who cannot see it.
        tips: what to say of single marks when they are pointed at, tapped, or reached by the Tab key; by
            the `gid` that each mark was drawn with, as in ``ax.plot(x, y, "o", gid="first")``.
    """
    if tips is None:
        display(HTML(f'<figure class="course-figure">{_svg(drawn, alt)}</figure>'))
        return
    svg = _svg(drawn, alt).replace('role="img"', 'role="group"', 1)  # an image may hold nothing to reach
    for gid, tip in tips.items():
        svg = _with_tip(svg, gid, html.escape(tip))
    hint = "<figcaption>Point at a mark, or go to it with the Tab key, to read what it is.</figcaption>"
    display(HTML(f'<figure class="course-figure course-tips">{svg}{hint}</figure>'))


def _with_tip(svg: str, gid: str, said: str) -> str:
    tell = "this.closest('figure').lastChild.textContent = this.getAttribute('aria-label')"
    reach = f'role="img" tabindex="0" aria-label="{said}" onfocus="{tell}" onmouseenter="{tell}"'
    begin = rf'<g id="\w+-{re.escape(gid)}">'
    svg, found = re.subn(begin, lambda m: f"{m[0][:-1]} {reach}><title>{said}</title>", svg)
    if found != 1:
        raise ValueError(f"tips: one mark of the figure must have the gid {gid!r}; {found} have")
    return svg


class Cell(NamedTuple):
    """What a table shows in a cell, and by what it sorts: a number, or None where there is none."""

    text: str
    value: float | None


def table(rows: Sequence[Mapping[str, str | Cell]], caption: str) -> None:
    """Show a table whose rows sort by a column when its head is pressed, without a kernel.

    Args:
        rows: by the heads of columns; all rows have the same. The first column names the row. A text
            sorts by the alphabet, a `Cell` by its value; one without a value comes last.
        caption: what the table holds.
    """
    heads = list(rows[0]) if rows else []
    if not heads or any(list(row) != heads for row in rows):
        raise ValueError(f"rows must be at least one, all with the same heads; got {[list(r) for r in rows]}")
    if not caption.strip():
        raise ValueError("caption must say what the table holds; got an empty text")
    kinds = (' class="number"' if isinstance(cell, Cell) else "" for cell in rows[0].values())
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{html.escape(h)}</button></th>'
        for h, kind in zip(heads, kinds, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(i, row[h]) for i, h in enumerate(heads))}</tr>" for row in rows)
    sort = (  # a first press sorts upwards, a second one downwards
        "const head = event.target.closest('th[scope=col]'); if (!head) return;"
        "const up = head.getAttribute('aria-sort') != 'ascending', body = this.tBodies[0];"
        "const of = row => row.cells[head.cellIndex], key = row => of(row).dataset.value;"
        "const apart = (p, q) => key(p) == null ? of(p).textContent.localeCompare(of(q).textContent)"
        " : key(p) - key(q);"
        "const order = (p, q) => (key(p) === '') - (key(q) === '') || (up ? 1 : -1) * apart(p, q);"
        "for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');"
        "head.setAttribute('aria-sort', up ? 'ascending' : 'descending');"
        "body.append(...[...body.rows].sort(order));"
    )
    said = html.escape(caption)
    display(
        HTML(
            f'<div class="course-table" role="region" tabindex="0" aria-label="{said}">'
            f'<table onclick="{html.escape(sort)}"><caption><span>{said}</span></caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
    )


def _cell(column: int, cell: str | Cell) -> str:
    tag, scope = ("td", "") if column else ("th", ' scope="row"')
    if isinstance(cell, str):
        return f"<{tag}{scope}>{html.escape(cell)}</{tag}>"
    value = "" if cell.value is None or cell.value != cell.value else f"{cell.value!r}"
    return f'<{tag}{scope} data-value="{value}">{html.escape(cell.text)}</{tag}>'


def text(markdown: str) -> None:
    """Show Markdown that code has made."""
    display(Markdown(markdown))


def slider(draw: Callable[[Any], Figure], values: Sequence, name: str, alt: str) -> None:
    """Show one frame for each value, with a slider that needs no kernel.

    Args:
        draw: makes the figure for one value.
        values: the values, in the slider's order; at least two.
        name: what the slider sets, such as ``"iteration"``.
        alt: what the figure shows; each frame's text adds the value.
    """
    if len(values) < 2:
        raise ValueError(f"values must hold at least two, so that the slider can move; got {len(values)}")
    frames = "".join(
        f'<div class="frame"{"" if i == 0 else " hidden"}>{_svg(draw(v), f"{alt} ({name}: {v})")}</div>'
        for i, v in enumerate(values)
    )
    said, first = html.escape(json.dumps([str(v) for v in values])), html.escape(str(values[0]))
    move = (
        "const f = this.closest('figure'), v = JSON.parse(this.dataset.values)[this.value];"
        "f.querySelectorAll('.frame').forEach((e, i) => e.hidden = i != this.value);"
        "f.querySelector('output').textContent = v; this.setAttribute('aria-valuetext', v);"
    )
    display(
        HTML(
            f'<figure class="course-figure course-slider">{frames}<label>{html.escape(name)} '
            f'<input type="range" min="0" max="{len(values) - 1}" value="0" style="width: 60%" '
            f'aria-valuetext="{first}" data-values="{said}" oninput="{html.escape(move)}"> '
            f"<output>{first}</output></label></figure>"
        )
    )


def live(draw: Callable[..., Figure], alt: str, **controls: ipywidgets.Widget) -> None:
    """The same view with a kernel: `draw` is called again whenever one of the controls moves.

    The names of the controls are those of `draw`'s arguments. (`ipywidgets.interact` would catch
    the figure in an Output widget, whose messages have made executed notebooks wait for ever.)
    """
    view = ipywidgets.HTML()

    def redraw(change: Any = None) -> None:
        view.value = _svg(draw(**{name: control.value for name, control in controls.items()}), alt)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    display(ipywidgets.VBox([*controls.values(), view]))


def images(
    batch: torch.Tensor,
    alt: str,
    *,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    size: float = 0.6,
) -> None:
    """Show images in a grid; see `sheet`. `alt` says in words what they show."""
    figure(sheet(batch, titles=titles, columns=columns, size=size), alt)


def sheet(
    batch: torch.Tensor, *, titles: Sequence[str] | None = None, columns: int = 10, size: float = 0.6
) -> Figure:
    """Draw images in a grid: (N, 1, H, W), grey, or (N, 3, H, W), in [-1, 1]; `size` is inches an image."""
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(f"batch must have shape (N, 1, H, W) or (N, 3, H, W); got {tuple(batch.shape)}")
    n, C, H, W = batch.shape
    rows, gap = -(-n // columns), max(1, H // 12)
    pitch = H + (int(0.2 * H / size) + 1 if titles else gap)  # from one image to the one below
    # All images in one array: one picture is drawn many times faster than many. NaN is transparent.
    pixels = np.full((rows * pitch, columns * (W + gap), C), np.nan, dtype=np.float32)
    height = columns * size * pixels.shape[0] / pixels.shape[1]
    with plt.rc_context(STYLE):
        drawn, ax = plt.subplots(figsize=(columns * size, height))
    for i, image in enumerate(batch.permute(0, 2, 3, 1).detach().cpu().float().numpy()):
        bottom, left = (i // columns + 1) * pitch, i % columns * (W + gap)
        pixels[bottom - H : bottom, left : left + W] = image
        if titles:
            ax.text(left + W / 2, bottom - H - 1, titles[i], fontsize=8, ha="center", va="bottom")
    if C == 1:
        ax.imshow(pixels[..., 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    else:  # with opacity as a fourth channel; "none" keeps every pixel, where "nearest" might skip some
        opaque = np.isfinite(pixels[..., :1])
        coloured = np.where(opaque, (pixels.clip(-1, 1) + 1) / 2, 0)
        ax.imshow(np.concatenate([coloured, opaque], -1), interpolation="none", aspect="auto")
    ax.axis("off")
    return drawn


def plane(axes: Axes | np.ndarray, **settings: Any) -> None:
    """Axes for points of the plane: units of one length, both coordinates named on the outer edges.

    axes: one, or the array of a grid; `settings`, such as ``xlim=(-3, 3)``, go to all of them.
    """
    for ax in np.ravel(axes):
        place = ax.get_subplotspec()
        ax.set(aspect="equal", **settings)
        ax.set_xlabel("first coordinate" if place.is_last_row() else "")
        ax.set_ylabel("second coordinate" if place.is_first_col() else "")


def ellipse(ax: Axes, mean: torch.Tensor, covariance: torch.Tensor, **style: Any) -> None:
    """Draw the contour two standard deviations from a 2-D Gaussian's mean.

    mean: (2,), covariance: (2, 2).
    """
    values, vectors = np.linalg.eigh(covariance.detach().cpu().double().numpy())
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    width, height = 4 * np.sqrt(values[::-1])
    ax.add_patch(Ellipse(mean.tolist(), width, height, angle=angle, fill=False, lw=2, **style))


def show_source(thing: Any) -> None:
    """Show the source of a function, class or module of the course, as it runs."""
    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"))
