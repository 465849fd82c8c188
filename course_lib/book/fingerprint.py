r"""A short hash of the code that a function depends on, definition by definition.

From some names of a module it follows every name through the package's files, and hashes the syntax tree of
each definition that it reaches: functions, whole classes with their bases and decorators, constants, and
files in the package's folder ``stored`` that one of them names. So a change in a function two modules away
is seen, and a change elsewhere is not. Docstrings, comments, layout, annotations of arguments and messages of
errors are left out: they change no number.

Where it cannot tell, it takes more than is needed: a local name that hides a module's, all that a module
does when it is imported, and a whole module where that is passed around as a value, or has not the name that
is asked for. It does not see a module that is imported by a computed name, nor a function that only its
decorator knows of. What other packages do it leaves to their versions.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

WHOLE = "*"  # in the place of a name: all of the module
DEFINITIONS = ast.Assign, ast.AnnAssign, ast.AugAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


class Code(NamedTuple):
    """The hash, and the files that it was made from."""

    hash: str
    files: list[Path]


def fingerprint(module: str, names: Iterable[str], package: Path) -> Code:
    """Of these names of a module and all that they reach inside a package.

    Args:
        module: its full name, such as ``"course_lib.mixture.em"``.
        names: what to begin with.
        package: the folder of the package that the module is in.

    Raises:
        ValueError: the package has no such module, or that has not one of the names.

    Examples:
        >>> import course_lib
        >>> code = fingerprint("course_lib.mixture.em", ["fit"], Path(course_lib.__file__).parent)
        >>> len(code.hash), sorted(path.name for path in code.files)
        (12, ['em.py', 'gaussian.py', 'kmeans.py', 'points.py', 'require.py'])
    """
    library = Library(package)
    if library.find(module) is None:
        raise ValueError(f"module must be one of {package}; got {module!r}")
    for name in names:
        if name not in library[module].defined.keys() | library[module].imports.keys():
            raise ValueError(f"names must be defined in {module}; got {name!r}")
        library.reach(module, name)
    digest = hashlib.sha256("\0".join(sorted(library.lines)).encode())
    return Code(digest.hexdigest()[:12], sorted(library.used))


class Module:
    """A file's statements, by the names that they bind."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.imports: dict[str, str] = {}  # a name, and what it stands for: course_lib.points.nearest
        self.defined: dict[str, list[ast.stmt]] = {}
        self.loose: list[ast.stmt] = []  # what does something when the module is imported
        for statement in Bare().visit(ast.parse(path.read_text("utf8"))).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= self.bound(statement)
                continue
            for bound in set(_binds(statement)):
                self.defined.setdefault(bound, []).append(statement)
            self.loose += [] if isinstance(statement, DEFINITIONS) else [statement]

    def bound(self, statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
        """What an import binds: names here, and what they stand for."""
        if isinstance(statement, ast.Import):  # `import a.b` binds a
            firsts = (a.name.partition(".")[0] for a in statement.names if not a.asname)
            return {a.asname: a.name for a in statement.names if a.asname} | {
                first: first for first in firsts
            }
        parts = self.package.split(".")
        above = parts[: len(parts) - statement.level + 1] if statement.level else []
        home = ".".join([*above, *filter(None, [statement.module])])
        return {a.asname or a.name: f"{home}.{a.name}" for a in statement.names}


class Library(dict[str, Module]):
    """The package's modules, each read when it is reached; `lines` is what the hash is of."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.stored = {path.name: path for path in (folder / "stored").glob("*")}
        self.lines: set[str] = set()
        self.used: set[Path] = set()
        self.seen: set[tuple[str, str]] = set()

    def __missing__(self, name: str) -> Module:
        self[name] = Module(name, self.find(name))
        return self[name]

    def find(self, name: str) -> Path | None:
        """The file of a module of the package; None for what is not one."""
        first, *rest = name.split(".")
        at = self.folder.joinpath(*rest)
        files = (at.parent / f"{at.name}.py", at / "__init__.py") if first == self.folder.name else ()
        return next((file for file in files if file.exists()), None)

    def reach(self, module: str, name: str) -> None:
        """Take in a module's name and all that it uses."""
        waiting = [(module, name)]
        while waiting:
            module, name = waiting.pop()
            if (module, name) in self.seen:
                continue
            self.seen.add((module, name))
            here = self[module]
            self.used.add(here.path)
            if name == WHOLE:
                waiting += [(module, bound) for bound in here.defined.keys() | here.imports.keys()]
            elif name in here.imports:
                waiting += self._follow(f"{module}.{name}", here.imports[name])
            for statement in (*here.defined.get(name, ()), *here.loose):
                waiting += self._uses(here, statement)
            if WHOLE in here.imports:  # `from … import *`
                waiting += self._follow(module, here.imports[WHOLE].removesuffix(".*"))

    def _uses(self, here: Module, statement: ast.stmt) -> Iterator[tuple[str, str]]:
        """Take in a statement; yields the names that it uses, as far as the package defines them."""
        self.lines.add(f"{here.name} {dump(statement)}")
        for first, *rest in _chains(statement):
            if first in here.defined:
                yield here.name, first
            if first in here.imports:
                yield from self._follow(f"{here.name}.{first}", here.imports[first], rest)
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):  # inside a function, or a `try`
                for name, target in here.bound(node).items():
                    yield from self._follow(f"{here.name}.{name}", target)
            if isinstance(node, ast.Constant) and (path := self.stored.get(str(node.value))):
                self.lines.add(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")

    def _follow(self, user: str, target: str, rest: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
        """From what a name stands for, and the attributes asked of it, to where that is defined."""
        parts = target.split(".")
        if parts[0] != self.folder.name:
            self.lines.add(f"{user} is {target}")  # of another package
            return
        home, name = self._home([*parts, *rest])
        self.lines.add(f"{user} is {home}:{name}")
        yield home, name

    def _home(self, parts: list[str]) -> tuple[str, str]:
        """The module that defines what a dotted name means, and its name there."""
        count = max(i for i in range(1, len(parts) + 1) if i == 1 or self.find(".".join(parts[:i])))
        module, name = self[".".join(parts[:count])], (*parts[count:], WHOLE)[0]
        if name in module.defined:
            return module.name, name
        target = _listed(module, name) or module.imports.get(name, "")
        if name != WHOLE and target.partition(".")[0] == self.folder.name:
            return self._home([*target.split("."), *parts[count + 1 :]])
        return module.name, WHOLE


class Bare(ast.NodeTransformer):
    """Takes away what changes no number."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # a docstring

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "__name__ == '__main__'" else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(self.visit(node.test))

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def dump(node: object) -> str:
    """A syntax tree as text: `ast.dump`, but the same in all versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    kept = (f"{name}={dump(value)}" for name, value in fields if name not in ("ctx", "kind"))
    return f"{type(node).__name__}({','.join(kept)})"


def _chains(node: ast.AST) -> Iterator[list[str]]:
    """Every dotted name in a tree, as its parts."""
    parts, inner = [], node
    while isinstance(inner, ast.Attribute):
        parts, inner = [inner.attr, *parts], inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *parts]
    else:
        for child in ast.iter_child_nodes(node):
            yield from _chains(child)


def _binds(node: ast.AST) -> Iterator[str]:
    """The names that a statement of a module binds or changes; those inside functions are not among them."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (a.asname or a.name.partition(".")[0] for a in node.names)
    if isinstance(
        getattr(node, "ctx", None), ast.Store | ast.Del
    ):  # in `table["a"] = 1` the subscript has it
        yield from next(_chains(node), [])[:1] if not isinstance(node, ast.Tuple | ast.List) else []
    for child in ast.iter_child_nodes(node):
        yield from _binds(child)


def _listed(module: Module, name: str) -> str:
    """What a name stands for that a package's `__getattr__` finds in a dictionary of names and modules."""
    statements = (
        (s for own in module.defined.values() for s in own) if "__getattr__" in module.defined else ()
    )
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                    return f"{module.name}.{value.value}.{name}"
    return ""
