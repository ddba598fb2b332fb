from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"

FOR_OTHERS = {
    "MPLBACKEND": "module://nowhere", "PYTHONWARNINGS": "error", "LC_ALL": "C", "COLUMNS": "0",
    "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "-1",
    "MLFLOW_RUN_ID": "x", "MLFLOW_EXPERIMENT_ID": "77", "PYTHONOPTIMIZE": "1",
}  # fmt: skip


def test_what_is_set_for_other_programs_ends_no_command(tmp_path: Path) -> None:
    program = (
        "from flair2_exp.machine import settle_surroundings\nsettle_surroundings()\n"
        "import os, warnings, matplotlib\n"
        "warnings.warn('a library says', DeprecationWarning)\nwarnings.warn('a library says')\n"
        "raise SystemExit(matplotlib.get_backend() != 'agg' or 'PYTHONWARNINGS' in os.environ)"
    )
    for line in (["-c", program], [str(SCRIPTS / "leaderboard.py"), "--help"]):
        done = subprocess.run(
            [sys.executable, *line], cwd=tmp_path, env={**os.environ, **FOR_OTHERS},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
