"""Check a FLAIR #2 tree, or any data set: every file it names, all damage at once.

    python scripts/check.py data/flair2
    python scripts/check.py dataset=geotiff dataset.root=data/mine
    python scripts/check.py data/flair2 --headers-only --json findings.json
    python scripts/check.py data/flair2 --without-series --json -

Exit status: 0 sound (warnings do not count), 1 damaged, 2 wrong usage, 130 stopped, 141 its output
was closed before the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data.check.findings import Finding
from flair2_exp.data.check.tree import SUPER_PATCH, check_tree
from flair2_exp.data.layout import locate
from flair2_exp.errors import DataError
from flair2_exp.streams import run

_COLOURS = {"error": "red", "warning": "yellow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if "=" in options.root[0]:
        return _checked_source(options)
    if len(options.root) > 1:
        parser.error(f"{' '.join(options.root[1:])}: one ROOT, or overrides as dataset=geotiff")
    root = Path(options.root[0]).expanduser().resolve()
    status = 2
    try:
        folders = locate(DatasetConfig(root=str(root)))
        status = 1
        check = partial(
            check_tree,
            folders,
            super_patch=options.super_patch,
            series=not options.without_series,
            metadata=not options.without_metadata,
        )
        return _print(_check(root, check, options), options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130


def _checked_source(options: argparse.Namespace) -> int:
    """Check the data set that overrides name; returns the exit status."""
    from flair2_exp.cli.composed import composed
    from flair2_exp.config.explain import explain
    from flair2_exp.data.source import open_source

    left_out = {"satellite": options.without_series, "metadata": options.without_metadata}
    try:
        config = composed([*options.root, "dataset.on_damaged=skip"])
        groups = config.data_groups
        reads = open_source(groups, frozenset()).has - {n for n, out in left_out.items() if out}
        source = open_source(groups, reads)
        check = partial(source.check, groups, reads)
        return _print(_check(Path(config.dataset.root or "."), check, options), options)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    except Exception as error:  # explain tells mistakes, Hydra's among them, from bugs
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def _check(
    root: Path, check: Callable[..., list[Finding]], options: argparse.Namespace
) -> dict[str, Any]:
    """Check, with a bar on a terminal; return what `--json` writes, paths relative to the root."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("patches", total=None)
        findings = check(
            headers_only=options.headers_only,
            workers=options.workers,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
        patches = int(progress.tasks[task].completed)
    severities = Counter(finding.severity for finding in findings)
    return {
        "root": str(root),
        "patches": patches,
        "errors": severities["error"],
        "warnings": severities["warning"],
        "kinds": dict(sorted(Counter(finding.kind for finding in findings).items())),
        "findings": [
            dataclasses.asdict(finding) | {"path": str(finding.path).removeprefix(f"{root}/")}
            for finding in findings
        ],
    }


def _print(result: dict[str, Any], options: argparse.Namespace) -> int:
    """Print or write what a check found; return the exit status."""
    status = 1 if result["errors"] else 0
    if options.json == "-":
        print(json.dumps(result, indent=1), flush=True)
        return status
    if options.json is not None:
        try:
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        except OSError as error:  # the table still says what hours may have found
            print(f"error: --json {options.json}: {error.strerror}", file=sys.stderr)
            status = 2
    _print_table(result["findings"], options.limit)
    print(
        f"{'damaged' if result['errors'] else 'sound'}: {result['patches']:,} patches, "
        f"{result['errors']:,} errors, {result['warnings']:,} warnings"
        + (" (headers only)" if options.headers_only else ""),
        flush=True,
    )
    return status


def _print_table(findings: Sequence[dict[str, str]], limit: int) -> None:
    """Print the first findings; a path is never cut, however narrow the terminal."""
    if not findings:
        return
    headings = ("", "kind", "file", "patch or area", "what")
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for finding in findings[:limit]:
        severity = f"[{_COLOURS[finding['severity']]}]{finding['severity']}[/]"
        texts = (finding[name] for name in ("kind", "path", "subject", "message"))
        table.add_row(severity, *map(escape, texts))
    console = Console()
    # Off a terminal nothing tells a width: wide enough for one line per finding.
    console.width = console.width if console.is_terminal else 240
    console.print(table)
    if len(findings) > limit:
        print(f"… and {len(findings) - limit:,} more; --json FILE writes all")


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
    text = "folder of the released tree, or overrides that name a data set, as dataset=geotiff"
    parser.add_argument("root", metavar="ROOT", nargs="+", help=text)
    text = "write all findings as JSON; - prints them"
    parser.add_argument("--json", metavar="FILE", type=_json_target, help=text)
    for flag, text in (
        ("--headers-only", "leave pixels and values unread: much faster"),
        ("--without-series", "the tree has no satellite series"),
        ("--without-metadata", "the tree has no aerial metadata"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    for flag, default, text in (
        ("--workers", os.cpu_count() or 1, "processes"),
        ("--super-patch", SUPER_PATCH, "pixels on a side of the satellite crop"),
        ("--limit", 100, "rows of the table"),
    ):
        text = f"{text} (default: %(default)s)"
        parser.add_argument(flag, type=_positive, default=default, help=text)
    return parser


if __name__ == "__main__":
    run(main)
