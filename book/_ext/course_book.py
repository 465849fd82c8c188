"""What the book needs beyond Jupyter Book: an honest execution cache and the page of verified results."""

import hashlib
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError
from sphinx_proof.directive import ElementDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `tools`, which is not installed

from course_lib.book.profiles import start
from tools.notebooks import read_all, verified_page

CACHES = 4  # folders kept: a few branches or profiles in turn


def fingerprint(root: Path, profile: str) -> str:
    """A short hash of all that a notebook's outputs depend on beside the notebook."""
    digest = hashlib.sha256(profile.encode())
    kept = lambda path: path.suffix in (".py", ".ipynb") or path.parent.name == "stored"
    library = (path for path in (root / "course_lib").rglob("*") if path.is_file() and kept(path))
    for path in [root / "requirements.txt", *sorted(library)]:
        digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def choose_cache(app: Sphinx, config: Config) -> None:
    """Give each state of the code its own cache: jupyter-cache looks at the notebook only.

    The folder is a setting of the environment, so Sphinx reads all pages again when it changes.
    """
    try:
        profile = start().profile
    except ValueError as error:
        raise ConfigError(f"COURSE_PROFILE: {error}") from None
    root = Path(app.srcdir)
    caches = root / "_build" / ".jupyter_cache"
    chosen = caches / fingerprint(root, profile)
    chosen.mkdir(parents=True, exist_ok=True)
    chosen.touch()
    for old in sorted(caches.iterdir(), key=lambda folder: -folder.stat().st_mtime)[CACHES:]:
        shutil.rmtree(old)
    config.nb_execution_cache_path = str(chosen)


def write_verified(app: Sphinx) -> None:
    """Write the page of verified results before Sphinx looks for pages; leave it alone if it holds."""
    path = Path(app.srcdir) / "book" / "verified.md"
    page = verified_page(read_all(Path(app.srcdir)))
    if not path.exists() or path.read_text("utf8") != page:
        path.write_text(page, "utf8")


def forget_warned(app: Sphinx, error: Exception | None) -> None:
    """After a build that warned, read every page again: a page left unread would not warn."""
    if error is None and app._warncount:
        shutil.rmtree(app.doctreedir)


def drop_widget_state(app: Sphinx, doctree: nodes.document) -> None:
    """Keep live widgets' state out of the page, where no kernel could use it."""
    NbMetadataCollector.get_js_files(app.env, app.env.docname).pop("ipywidgets_state", None)


def tie_punctuation(app: Sphinx, doctree: nodes.document) -> None:
    """Hold a formula and the punctuation after it together: a browser would break the line there."""
    for math in list(doctree.findall(nodes.math)):
        place = math.parent.index(math)
        after = math.parent[place + 1] if place + 1 < len(math.parent) else None
        if isinstance(after, nodes.Text) and (mark := re.match(r"[^\w\s(–—-]+", after)):
            tied = nodes.inline("", "", math.deepcopy(), nodes.Text(mark[0]), classes=["tied"])
            math.parent[place : place + 2] = [tied, nodes.Text(after[mark.end() :])]


def drop_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Keep out Jupyter Book's scripts for running cells on another host: the book does not use them."""
    mentions = lambda script: f"{script.filename} {script.attributes.get('body')}".lower()
    context["script_files"] = [s for s in context["script_files"] if "thebe" not in mentions(s)]


def reach_tables(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Let the keyboard reach a table, which a telephone may have to scroll sideways."""
    box = 'class="pst-scrollable-table-container"'
    context["body"] = context.get("body", "").replace(box, f'{box} tabindex="0"')


class NamedByPage(ElementDirective):
    """A proposition without a label gets one with its page's name in it.

    sphinx-proof counts them anew on each page, so that those of two chapters would get one label.
    """

    def run(self) -> list[nodes.Node]:
        number = self.env.new_serialno("proof")
        self.options.setdefault("label", f"{self.env.docname}-{number}".replace("/", "-"))
        return super().run()


def skip_fields(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave a NamedTuple's fields to its signature: alone, each reads "Alias for field number 0"."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", choose_cache)
    app.connect("builder-inited", write_verified)
    app.connect("build-finished", forget_warned)
    app.connect("doctree-read", drop_widget_state)
    app.connect("doctree-read", tie_punctuation)
    app.connect("html-page-context", drop_thebe)
    app.connect("html-page-context", reach_tables)
    app.connect("autodoc-skip-member", skip_fields)
    known = app.registry.domains["prf"].directives
    for kind, directive in known.items():
        if issubclass(directive, ElementDirective):  # all but proofs, which have no number
            known[kind] = type(directive.__name__, (NamedByPage, directive), {})
    return {"parallel_read_safe": True, "parallel_write_safe": True}
