"""What a user can get wrong, each typed as a command: `python -m tests.campaign.bad_inputs`.

Each command runs as a process of its own, in a folder that holds files of other programs and bad
files to point at. It must end within 20 s with a status that is not 0, say what is wrong in one or
two lines without a traceback, and leave the folder as it was. Prints a table in Markdown, and exits
1 where a command does not behave so. `--only TEXT` picks commands, `--jobs N` runs several at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cli.test_main import MISTAKES

ROOT = Path(__file__).parents[2]
LIMIT = 20.0
"""Seconds that a mistake may take."""
MOST_LINES = 2
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

SMALL = (
    "preset=debug trainer=cpu dataset.sample.patch_size=64 dataset.sample.domains=6"
    " dataset.sample.areas_per_domain=1 dataset.sample.patches_per_area=4"
)
PROGRAM = "python -m flair2_exp"
PLACEHOLDERS = {"{small}": SMALL, "{long}": "x" * 300, "{newline}": "\n", "{tab}": "\t"}


def commands() -> list[str]:
    """The commands of bad_inputs.txt, and the mistakes that the tests of the command line have."""
    lines = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    return list(dict.fromkeys([*listed, *(shlex.join(line.split()) for line, _ in MISTAKES)]))


_BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAML: dict[str, bytes] = {
    "tab": b"seed:\t1\n\tname: x\n",
    "duplicate": b"seed: 1\nseed: 2\n",
    "python_tag": b"name: !!python/object/apply:os.system ['touch executed']\n",
    "utf16": "seed: 1\nname: été\n".encode("utf-16"),
    "latin": "name: été\n".encode("latin-1"),
    "nul": b"seed: 1\nname: a\x00b\n",
    "defaults": b"# @package _global_\ndefaults: 3\nseed: 1\n",
    "itself": b"# @package _global_\ndefaults:\n  - /experiment/itself\nseed: 1\n",
    "bomb": _BOMB.encode(),
    "nothing": b"",
    "scalar": b"3\n",
    "listed": b"- seed\n- name\n",
    "wrong_type": b"# @package _global_\noptimizer:\n  lr: fast\n",
    "unclosed": b"# @package _global_\ndata: {batch_size: 2\nseed: 1\n",
    "typo": b"# @package _global_\noptimizer:\n  learning_rate: 0.1\n",
    "missing_key": b"# @package _global_\nname: ${nothing.at.all}\n",
    "cycle": b"# @package _global_\nname: ${description}\ndescription: ${name}\n",
    "deep": b"seed: " + b"[" * 5000 + b"]" * 5000 + b"\n",
    "two_documents": b"seed: 1\n---\nseed: 2\n",
}


def fill(here: Path) -> None:
    """Make the files of other programs, and the bad ones that commands point at."""
    experiments = here / "yaml/experiment"
    for folder in (here / "empty", here / ".hydra", experiments / "folder.yaml"):
        folder.mkdir(parents=True)
    for name, content in YAML.items():
        (experiments / f"{name}.yaml").write_bytes(content)
    (here / "latin.yaml").write_bytes("train: [é]\n".encode("latin-1"))
    (here / ".hydra/config.yaml").write_text("another: program\n")
    (here / "flair2_exp.log").write_text("a log of the user's\n")
    (here / "text.txt").write_text("some words of the user's\n")
    (here / "binary.bin").write_bytes(bytes(range(256)))
    (here / "list.json").write_text("[1, 2]\n")
    os.mkfifo(here / "fifo")
    with sqlite3.connect(here / "other.db") as other:
        other.execute("create table theirs (a integer)")


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    command: str
    status: int | None
    """None where it was still running after the limit."""
    seconds: float
    answer: str
    leftovers: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in a word each."""
        lines = self.answer.strip().splitlines()
        usage = self.status == 2 and any(line.startswith("usage:") for line in lines)
        faults = {
            "hangs": self.status is None,
            "succeeds": self.status == 0,
            "traceback": "Traceback (most recent" in self.answer,
            "says nothing": not lines,
            f"{len(lines)} lines": len(lines) > MOST_LINES and not usage,
            "leaves " + ", ".join(self.leftovers[:3]): bool(self.leftovers),
        }
        return [fault for fault, present in faults.items() if present]


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    } | {f"{path.relative_to(folder)}/": (0, 0) for path in folder.rglob("*") if path.is_dir()}


def attempt(command: str) -> Outcome:
    """Run one command in a new folder."""
    with tempfile.TemporaryDirectory(prefix="bad_input_") as temporary:
        here = Path(temporary) / "here"
        here.mkdir()
        fill(here)
        typed = command.replace("{here}", str(here))
        for name, text in PLACEHOLDERS.items():
            typed = typed.replace(name, text)
        words = shlex.split(typed)
        if words[0] != "python":
            words = [*PROGRAM.split(), *words]
        words[0] = sys.executable
        if words[1].startswith("scripts/"):
            words[1] = str(ROOT / words[1])
        before, start = _tree(here), time.monotonic()
        process = subprocess.Popen(
            words, cwd=here, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **QUIET},
        )  # fmt: skip
        status: int | None
        try:
            _, answer = process.communicate(timeout=LIMIT)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, answer = process.communicate()
            status = None
        seconds = time.monotonic() - start
        after = _tree(here)
        changed = {path for path in before.keys() | after if before.get(path) != after.get(path)}
        answer = answer.replace(str(here), "{here}").replace(str(ROOT), "")
        return Outcome(command, status, seconds, answer, tuple(sorted(changed)))


def rows(outcomes: list[Outcome]) -> Iterator[str]:
    """The table."""
    yield "| input | status | s | answer | fault |"
    yield "| --- | --- | --- | --- | --- |"
    for each in outcomes:
        cells = (
            f"`{_short(each.command)}`", each.status, f"{each.seconds:.1f}",
            _short(each.answer.strip(), 220), ", ".join(each.faults),
        )  # fmt: skip
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _short(text: str, most: int = 100) -> str:
    text = text.replace("\n", " ⏎ ").replace("\t", "→")
    return text if len(text) <= most else text[: most - 1] + "…"


def main() -> int:
    """Run all commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="commands that contain this text")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time (default: 2)")
    arguments = parser.parse_args()
    chosen = [each for each in commands() if arguments.only in each]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(attempt, chosen))
    print(*rows(outcomes), sep="\n")
    faulty = [each for each in outcomes if each.faults]
    kinds = ("traceback", "hangs", "leaves", "succeeds")
    counts = {
        kind: sum(any(fault.startswith(kind) for fault in each.faults) for each in faulty)
        for kind in kinds
    }
    slowest = max(each.seconds for each in outcomes)
    print(
        f"\n{len(outcomes)} inputs, {len(faulty)} with a fault: {counts}; slowest {slowest:.1f} s"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
