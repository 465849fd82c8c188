"""A plain script may call `arena`: its processes do not run the script again."""

import subprocess
import sys

SCRIPT = """
from course_lib.arena.run import arena

print("the script runs")
few = dict(fields=("points",), families=("factorized Gaussian",), seeds=1)
print([row["status"] for row in arena("smoke", folder="runs", **few).rows])
"""


def test_a_script_without_a_guard_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "the script runs\n['ok']\n", ran.stderr
