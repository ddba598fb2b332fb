"""Check a FLAIR #2 tree: every file it names, all damage at once.

    python scripts/check.py data/flair2
    python scripts/check.py data/flair2 --headers-only --json findings.json
    python scripts/check.py data/flair2 --without-series --json -

Exit status: 0 sound (warnings do not count), 1 damaged, 2 wrong usage, 130 stopped, 141 its output
was closed before the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data.check.findings import Finding
from flair2_exp.data.check.tree import SUPER_PATCH, check_tree
from flair2_exp.data.layout import Folders, locate
from flair2_exp.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    root = options.root.expanduser().resolve()
    try:
        folders = locate(DatasetConfig(root=str(root)))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        findings, checked = _check(folders, options, console)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    try:
        return _tell(root, findings, checked, options)
    except BrokenPipeError:  # whoever reads our output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _check(
    folders: Folders, options: argparse.Namespace, console: Console
) -> tuple[list[Finding], int]:
    """Check, with a bar meanwhile; return the findings and how many patches were checked."""
    checked = 0
    with _bar(console) as progress:
        task = progress.add_task("patches", total=None)

        def report(done: int, total: int) -> None:
            nonlocal checked
            checked = done
            progress.update(task, completed=done, total=total)

        findings = check_tree(
            folders,
            headers_only=options.headers_only,
            workers=options.workers,
            super_patch=options.super_patch,
            series=not options.without_series,
            metadata=not options.without_metadata,
            report=report,
        )
    return findings, checked


def _tell(
    root: Path, findings: Sequence[Finding], checked: int, options: argparse.Namespace
) -> int:
    """Print or write what was found; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what no terminal shows
        sys.stdout.reconfigure(errors="backslashreplace")
    errors = sum(finding.severity == "error" for finding in findings)
    status = 1 if errors else 0
    if options.json == "-":
        print(_as_json(root, findings, checked), flush=True)
        return status
    if options.json is not None:
        try:
            Path(options.json).write_text(_as_json(root, findings, checked) + "\n", "utf-8")
        except OSError as error:  # the table still says what hours may have found
            print(f"error: --json {options.json}: {error.strerror}", file=sys.stderr)
            status = 2
    _print_table(root, findings, options.limit)
    print(
        f"{'damaged' if errors else 'sound'}: {checked:,} patches, {errors:,} errors, "
        f"{len(findings) - errors:,} warnings"
        + (" (headers only)" if options.headers_only else ""),
        flush=True,
    )
    return status


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _as_json(root: Path, findings: Sequence[Finding], checked: int) -> str:
    """Return all findings, paths relative to the root."""
    severities = Counter(finding.severity for finding in findings)
    content = {
        "root": str(root),
        "patches": checked,
        "errors": severities["error"],
        "warnings": severities["warning"],
        "kinds": dict(sorted(Counter(finding.kind for finding in findings).items())),
        "findings": [
            dataclasses.asdict(finding) | {"path": _relative(finding.path, root)}
            for finding in findings
        ],
    }
    return json.dumps(content, indent=1)


def _print_table(root: Path, findings: Sequence[Finding], limit: int) -> None:
    """Print the first findings; a path is never cut, however narrow the terminal."""
    if not findings:
        return
    console = Console()
    table = Table("", "kind", "file", "patch or area", "what")
    for finding in findings[:limit]:
        colour = "red" if finding.severity == "error" else "yellow"
        table.add_row(
            f"[{colour}]{finding.severity}[/]",
            finding.kind,
            escape(_relative(finding.path, root)),
            escape(finding.subject),
            escape(finding.message),
        )
    for column in table.columns:
        column.overflow = "fold"
    # Off a terminal nothing tells a width: wide enough for one line a finding.
    console.width = console.width if console.is_terminal else 240
    console.print(table)
    if len(findings) > limit:
        print(f"… and {len(findings) - limit:,} more; --json FILE writes all")


def _bar(console: Console) -> Progress:
    """Return a progress bar on a terminal, nothing elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _json_target(text: str) -> str:
    if text != "-" and not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is in no folder; make it first")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of the released tree")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=_json_target,
        help="write all findings as JSON; - prints them",
    )
    parser.add_argument(
        "--headers-only", action="store_true", help="leave pixels and values unread: much faster"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="processes (default: one a processor)",
    )
    parser.add_argument(
        "--super-patch",
        type=_positive,
        default=SUPER_PATCH,
        help="pixels on a side of the satellite crop (default: %(default)s)",
    )
    parser.add_argument(
        "--without-series", action="store_true", help="the tree has no satellite series"
    )
    parser.add_argument(
        "--without-metadata", action="store_true", help="the tree has no aerial metadata"
    )
    parser.add_argument(
        "--limit", type=_positive, default=100, help="rows of the table (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
