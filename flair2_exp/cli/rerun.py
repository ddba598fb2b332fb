"""`flair2-exp rerun`: the same run again, in a new folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.lifecycle.folder import Footprint, RunFolder, require_own, require_place
from flair2_exp.lifecycle.record import read_overrides
from flair2_exp.results.run import RecordedRun
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.config.experiment import Config


@verb(
    "rerun",
    examples="""
    flair2-exp rerun outputs/unet/TIME --dry-run    # what has changed since; runs nothing
    flair2-exp rerun outputs/unet/TIME
    flair2-exp compare outputs/unet/TIME outputs/unet/NEW_TIME
    """,
)
@click.argument("run", type=shown.PLACE)
@click.option("--dry-run", is_flag=True, help="Say what has changed since, and run nothing.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Where it runs (default: a new folder beside other runs of this name).",
)  # fmt: skip
@shown.tracking_uri
def command(run: str, dry_run: bool, out: Path | None, tracking_uri: str) -> None:
    """Run again what a run ran: the same config and seed, in a new folder.

    First it says what has changed since: the commit, packages, the content of the data, files of
    weights and code of your own. On a processor, with as many threads and nothing changed, the
    scores are the same.
    """
    found = RecordedRun.find(run, tracking_uri)
    config = repeatable_config(found)
    folder = (out or _new_folder(config)).absolute()
    changes = changes_since(found, config)
    print(f"{found.folder}: {found.record.row} seed {found.record.seed}, {found.state}")
    if changes:
        rows = [[name, before, now] for name, (before, now) in changes.items()]
        shown.print_table(["changed since", "then", "now"], rows)
    else:
        print("Nothing has changed since: code, packages and data are the same.")
    print(f"{'would run' if dry_run else 'runs'} in {folder}", flush=True)
    if not dry_run:
        _run(config, folder, read_overrides(found.folder))


def repeatable_config(run: RecordedRun) -> Config:
    """Return the config of a run that trains or tests one network.

    Raises:
        FlairError: It scores an ensemble, or its config is not one of this version.
    """
    if Tag.MEMBERS in run.record.tags:
        raise ConfigError(
            f"{run.folder} holds the score of an ensemble or of test-time augmentation: it has no "
            "run of its own to repeat.\nRepeat what it scored, or give its command again: "
            f"{run.record.tags.get(Tag.SOURCE_NAME, '')}"
        )
    return run.config


def changes_since(run: RecordedRun, config: Config) -> dict[str, tuple[str, str]]:
    """Return what decides results and is not as it was when a run began: then and now, by name.

    Args:
        run: The earlier one.
        config: Its config.
    """
    from flair2_exp.config.identity import deciding
    from flair2_exp.tracking.provenance import collect
    from flair2_exp.values import differences, render

    before, now = run.record.tags, {str(n): v for n, v in collect().tags().items()}
    changes = {
        name: (before.get(tag, "?"), now.get(tag, "?"))
        for name, tag in (("commit", Tag.COMMIT), ("uncommitted changes", Tag.DIRTY))
        if before.get(tag) != now.get(tag)
    }
    then, today = (_packages(tags.get(Tag.PACKAGES, "")) for tags in (before, now))
    changes |= {n: (then.get(n, "–"), today.get(n, "–")) for n in {**then, **today}
                if then.get(n) != today.get(n)}  # fmt: skip
    fingerprint, problem = _fingerprint(config)
    if problem:
        changes["data"] = (run.record.fingerprint[:12], problem)
    if run.record.deciding:
        decided = deciding(config, fingerprint or run.record.fingerprint)
        changes |= {
            "data" if name == "fingerprint" else name: (render(one)[:24], render(other)[:24])
            for name, (one, other) in differences(run.record.deciding, decided).items()
        }
    return changes


def _packages(text: str) -> Mapping[str, str]:
    pairs = (each.partition("==") for each in text.split("; ") if each)
    return {name: version for name, _, version in pairs}


def _fingerprint(config: Config) -> tuple[str, str]:
    """Return the fingerprint of the data as they are now, or what is in the way."""
    from flair2_exp.lifecycle.assembly import data_fingerprint

    try:
        found = data_fingerprint(config)
    except FlairError as error:
        return "", str(error).splitlines()[0]
    return found, "" if found else "not there: the sample is made anew"


def _new_folder(config: Config) -> Path:
    moment = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")  # as conf/config.yaml names them
    return Path(config.paths.output) / config.name / moment


def _run(config: Config, folder: Path, overrides: list[str]) -> None:
    from flair2_exp.lifecycle.experiment import run

    require_place(folder)
    require_own(RunFolder(folder))
    if RunFolder(folder).record.exists():
        raise ConfigError(f"{folder} holds a run already: name a new folder with --out.")
    before = Footprint.of(folder)
    with _logged(RunFolder(folder)):
        run(config, folder, overrides, None, before)


@contextmanager
def _logged(folder: RunFolder) -> Iterator[None]:
    """Show messages, and keep them in the run's log, as conf/hydra/job_logging/plain.yaml does."""
    from flair2_exp.tracking.scrub import ScrubbedFormatter

    console: Any = logging.StreamHandler(sys.stdout)
    console.setFormatter(ScrubbedFormatter("%(message)s"))
    folder.path.mkdir(parents=True, exist_ok=True)
    kept = logging.FileHandler(folder.log, encoding="utf-8", errors="backslashreplace", delay=True)
    kept.setFormatter(ScrubbedFormatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [console, kept]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        kept.close()
