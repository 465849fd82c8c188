"""Where the packages that only notebooks need are missing, what stands on them is left out."""

from importlib.util import find_spec

missing = [name for name in ("ipywidgets", "matplotlib", "papermill") if find_spec(name) is None]
collect_ignore = ["arena", "book"] if missing else []


def pytest_report_header() -> str:
    return f"left out for want of {', '.join(missing)}: {', '.join(collect_ignore)}" if missing else ""
