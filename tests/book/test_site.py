"""The site, as a reader sees it: every page in a real browser with the network shut."""

import functools
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "site-test" / "_build" / "html"

# Everything that a look at a page can find wrong, as one list of sentences.
FAULTS = r"""
() => {
  const faults = [], say = (fault, e) => faults.push(`${fault}: ${(e.outerHTML || e).slice(0, 120)}`);
  for (const e of document.querySelectorAll('.math'))
    if (!e.querySelector('mjx-container')) say('formula not typeset', e);
  for (const e of document.querySelectorAll('mjx-merror')) say('formula with an error', e);
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const apart = text.parentElement.closest('pre, code, script, style, mjx-container');
    if (!apart && /\$\$|\\frac|\\begin\{/.test(text.data)) say('raw LaTeX', text.data);
  }
  for (const e of document.querySelectorAll('img')) {
    if (!e.alt.trim() || /\.(png|svg|jpe?g)$/.test(e.alt)) say('image without alt text', e);
    if (!e.complete || !e.naturalWidth) say('image not loaded', e);
  }
  for (const e of document.querySelectorAll('svg[role=img]:not([aria-hidden=true])'))
    if (!(e.getAttribute('aria-label') || '').trim()) say('figure without alt text', e);
  const over = document.documentElement.scrollWidth - window.innerWidth;
  if (over > 0) say(`page wider than the window by ${over} pixels`, '');
  const shown = e => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width > 0;
  for (const selector of ['.bd-header-article', '.search-button, .search-button-field']) {
    const seen = [...document.querySelectorAll(selector)].filter(shown).length;
    if (seen !== 1) say(`${seen} instead of one`, selector);
  }
  return faults;
}
"""

# Axe takes minutes on tens of thousands of elements. So the insides of formulas and figures give way
# to boxes of the same size, and of each kind of highlighted word in code one is left to be judged.
THIN_OUT = """
() => {
  const found = [...document.querySelectorAll('mjx-container, .course-figure svg')];
  const boxes = found.map(e => e.getBoundingClientRect());
  found.forEach((e, i) => {
    e.replaceChildren();
    e.style.cssText += `; display: inline-block; width: ${boxes[i].width}px; height: ${boxes[i].height}px`;
  });
  const seen = new Set();
  for (const e of document.querySelectorAll('.highlight span[class]'))
    if (seen.has(e.className)) e.replaceWith(e.textContent);
    else seen.add(e.className);
}
"""


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def site() -> Path:
    """The whole book in the smoke profile; what was executed and read before is not again."""
    shutil.rmtree(SITE, ignore_errors=True)  # Sphinx would leave the pages of sources that are gone
    command = Path(sys.executable).with_name("jupyter-book")
    built = subprocess.run(
        [command, "build", "-W", "-n", "--keep-going", "--path-output", SITE.parents[1], ROOT],
        capture_output=True,
        text=True,
        env=os.environ | {"COURSE_PROFILE": "smoke"},
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return SITE


@pytest.fixture(scope="module")
def server(site: Path):
    handler = functools.partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def browser():
    executable = find_chromium()
    if executable is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium: install it, or set CHROMIUM to its path")
        pytest.skip("no Chromium: install it, or set CHROMIUM to its path")
    quiet = ("background-networking", "component-update", "sync", "gpu")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)],
        )


class Window:
    """A browser window that reaches nothing but the site, and remembers all that goes wrong."""

    def __init__(self, browser: Browser, home: str) -> None:
        self.home, self.wrong = home, []
        self.context = browser.new_context(color_scheme="light", reduced_motion="reduce")
        self.context.route(lambda url: not url.startswith((home, "data:", "blob:")), self._refuse)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: m.type == "error" and self.wrong.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("requestfailed", lambda r: self.wrong.append(f"failed request: {r.url}"))
        self.page.on("response", lambda r: r.status >= 400 and self.wrong.append(f"{r.status}: {r.url}"))

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def _refuse(self, route: Route) -> None:
        self.wrong.append(f"request to another host: {route.request.url}")
        route.abort()

    def open(self, path: str, width: int = 1280) -> Page:
        """Load a page and wait until its formulas are typeset and nothing moves."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(self.home + path)
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        self.page.evaluate("() => Promise.all(document.getAnimations().map(a => a.finished)).then(() => 0)")
        return self.page

    def take(self) -> list[str]:
        """What went wrong since the last time."""
        wrong, self.wrong = self.wrong, []
        return wrong


def pages(site: Path) -> list[str]:
    """Every page but `index.html`, which only leads on."""
    found = (path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return sorted(page for page in found if not page.startswith("_") and page != "index.html")


def holding(site: Path, text: str) -> list[str]:
    """The pages with this text in their source; there must be one."""
    found = [page for page in pages(site) if text in (site / page).read_text("utf8")]
    assert found, text
    return found


def violations(page: Page, *rules: str) -> list[str]:
    """What axe finds serious or critical, by all its rules or these. The page is not what it was then."""
    page.evaluate(THIN_OUT)
    # Without preload: axe would fetch stylesheets again, with wrong relative addresses.
    options = {"preload": False} | ({"runOnly": rules} if rules else {})
    found = Axe().run(page, options=options).response["violations"]
    grave = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return [f"{violation['id']}: {node['html']}" for violation in grave for node in violation["nodes"]]


def in_the_dark(page: Page) -> list[str]:
    """What the dark colours make hard to read."""
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    found = violations(page, "color-contrast")
    page.emulate_media(color_scheme="light")
    return found


def test_every_page(browser: Browser, server: str, site: Path) -> None:
    wrong = []
    with Window(browser, server) as window:
        for path in pages(site):
            for width in (1280, 390):
                page = window.open(path, width)
                found = page.evaluate(FAULTS) + window.take() + violations(page)
                if width == 1280:  # a dark page differs in nothing but its colours
                    found += in_the_dark(page)
                wrong += [f"{path} at {width}: {fault[:300]}" for fault in found]
    assert not wrong, "\n".join(wrong)


def test_a_look_finds_faults(browser: Browser, server: str) -> None:
    spoil = """document.querySelector('main').insertAdjacentHTML('beforeend', `<img src="none.png">
      <p>$$x$$</p><span class="math">x</span><svg role="img"></svg><div style="width: 3000px">wide</div>
      <button class="search-button-field">Search</button>`); fetch('https://example.org/').catch(() => 0)"""
    with Window(browser, server) as window:
        page = window.open("book/intro.html")
        page.evaluate(spoil)
        found = "\n".join(page.evaluate(FAULTS) + window.take())
    for fault in ("image without", "not loaded", "raw LaTeX", "not typeset", "figure without", "wider than"):
        assert fault in found
    assert "2 instead of one" in found and "another host: https://example.org/" in found


def test_a_look_in_the_dark_finds_pale_text(browser: Browser, server: str) -> None:
    with Window(browser, server) as window:
        page = window.open("book/intro.html")
        assert in_the_dark(page) == []
        page.add_style_tag(content="html[data-theme='dark'] main p { color: #333 }")
        assert violations(page, "color-contrast") == []  # nor does it show in the light
        assert any("color-contrast" in fault for fault in in_the_dark(page))


def test_sliders_move_the_figure(browser: Browser, server: str, site: Path) -> None:
    shown = "f => [f.querySelector('.frame:not([hidden])').innerHTML, f.querySelector('output').value]"
    with Window(browser, server) as window:
        for path in holding(site, "course-slider"):
            for figure in window.open(path).locator(".course-slider").all():
                frame, value = figure.evaluate(shown)
                figure.locator("input").press("ArrowRight")
                assert figure.locator(".frame:visible").count() == 1, path
                moved_frame, moved_value = figure.evaluate(shown)
                assert moved_frame != frame and moved_value != value, path
        assert window.take() == []


def test_solutions_fold_open(browser: Browser, server: str, site: Path) -> None:
    with Window(browser, server) as window:
        for path in holding(site, "<details><summary>Show the solution"):
            for details in window.open(path).locator(".solution details").all():
                content = details.locator(":scope > :not(summary)").first
                assert not content.is_visible(), path
                details.locator("summary").press("Enter")
                assert content.is_visible(), path
        assert window.take() == []


def test_search_finds_without_a_network(browser: Browser, server: str) -> None:
    with Window(browser, server) as window:
        page = window.open("search.html?q=responsibility")
        page.locator("ul.search li a[href*='gmm_em']").first.wait_for(timeout=10_000)
        assert window.take() == []


def test_opens_from_disk(browser: Browser, site: Path) -> None:
    with Window(browser, site.as_uri() + "/") as window:
        window.page.goto(window.home + "index.html")
        window.page.wait_for_url("**/book/intro.html")
        page = window.open("notebooks/gmm_em.html")
        assert page.evaluate(FAULTS) + window.take() == []
