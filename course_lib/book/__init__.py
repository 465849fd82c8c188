"""What only the notebooks need. No model imports it.

- `check`: a labelled equation, verified.
- `exercises`: `grade`, and one module a chapter with its exercises.
- `profiles`: `start` chooses the profile, the device and the seed, and a `Run` remembers them.
- `results`: tables of experiments that are computed once, and `experiments`, one module each.
- `show`: figures, sliders, tables and sheets of images.
"""

from course_lib.book import exercises, profiles, results, show
from course_lib.book.checks import CheckFailed, check
from course_lib.book.exercises import grade
from course_lib.book.profiles import Run, start

__all__ = ["CheckFailed", "Run", "check", "exercises", "grade", "profiles", "results", "show", "start"]
