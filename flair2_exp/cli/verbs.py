"""The verbs of a command line: `flair2-exp VERB …`, for all that is not an experiment.

A verb is the first word, and has no `=`; everything else is Hydra's. Each is a command of Click's,
imported when it is called.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import click

from flair2_exp.errors import ConfigError, UsageError
from flair2_exp.signals import signals_as_exceptions

PROGRAM: Final = "flair2-exp"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        place: `module:command`, imported when it is called: a `click.Command` made by `verb`, whose
            function returns the exit status (None: 0); mistakes are `FlairError`.
        help: What it does, in a few words.
    """

    place: str
    help: str

    @property
    def command(self) -> click.Command:
        """Import the verb's command."""
        module, _, name = self.place.partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))

    def __call__(self, arguments: Sequence[str]) -> int:
        """Do what the words behind the verb say; return the exit status.

        Raises:
            FlairError: The words are misused, or the verb's own mistakes.
        """
        command = self.command
        name = f"{PROGRAM} {command.name}"
        try:
            with _messages_shown(), signals_as_exceptions():
                return int(command.main(list(arguments), name, standalone_mode=False) or 0)
        except click.ClickException as error:
            if _is_of_a_file(error):  # as where a config names it
                raise ConfigError(f"{_sentence(error.format_message())}.") from None
            raise UsageError(f"{_sentence(error.format_message())}; see `{name} --help`.") from None
        except click.Abort as abort:  # which Click makes of Ctrl-C, without what was noted there
            raise abort.__cause__ or KeyboardInterrupt from None


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Show on standard error what the package logs, such as what takes long, as a run does.

    A verb that sets up handlers of its own keeps them alone: the last resort is for the others.
    """
    own, last = logging.getLogger("flair2_exp"), logging.lastResort
    levels = own.level, last.level if last else logging.WARNING
    own.setLevel(logging.INFO)
    if last:
        last.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(levels[0])
        if last:
            last.setLevel(levels[1])


class Option(click.Option):
    """An option of a verb.

    Args:
        declared: Its names.
        section: Under which heading the help shows it.
        several: It takes all words up to the next flag: `--image a.tif b.tif`; it may be repeated.
        **options: As of `click.Option`.
    """

    def __init__(
        self,
        declared: Sequence[str],
        *,
        section: str = "Options",
        several: bool = False,
        **options: Any,
    ) -> None:
        if several:
            options["multiple"] = True
        super().__init__(declared, **options)
        self.section, self.several = section, several


option: Final = partial(click.option, cls=Option)
"""Give a verb an `Option`; takes what that takes."""


class VerbCommand(click.Command):
    """A verb, whose help shows its examples before its details, and its options by section.

    Args:
        examples: Commands, one per line.
        usage: What stands behind the verb, one form per line; empty: what Click makes of it.
        **options: As of `click.Command`.
    """

    def __init__(self, *, examples: str = "", usage: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.examples = inspect.cleandoc(examples).splitlines()
        self.usage = inspect.cleandoc(usage).splitlines()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; `ctx.meta[WORDS]` keeps them as they were given."""
        ctx.meta[WORDS] = tuple(args)
        several = {
            flag
            for each in self.params
            if isinstance(each, Option) and each.several
            for flag in each.opts
        }
        return super().parse_args(ctx, list(_repeated(args, several)))

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each form of the command on a line."""
        if not self.usage:
            super().format_usage(ctx, formatter)
        for place, line in enumerate(self.usage):
            start = "Usage: " if not place else "       "
            formatter.write(f"{start}{ctx.command_path} {line}\n")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the verb does, how it is used, and what else there is to say."""
        first, _, details = inspect.cleandoc(self.help or "").partition("\n\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(first)
        if self.examples:
            formatter.write_paragraph()
            formatter.write("".join(f"  {line}\n" for line in self.examples))
        if details:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(details)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below the headings of their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        last = "Options"
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None and isinstance(each, click.Option):
                last = getattr(each, "section", last)  # Click's own --help comes at the end
                sections.setdefault(last, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=26)


WORDS: Final = "flair2_exp.words"
"""Key of a Click context's `meta`: the words behind the verb as they were given."""


def _repeated(words: Sequence[str], several: set[str]) -> Iterator[str]:
    """Yield a command's words with `--image A B` as `--image A --image B`, which Click reads."""
    flag, is_first = "", False
    for word in words:
        if len(word) > 1 and word.startswith("-"):
            flag, is_first = word if word in several else "", True
        elif flag and not is_first:
            yield flag
        else:
            is_first = False
        yield word


def verb(
    name: str, *, examples: str, usage: str = ""
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Return a decorator that makes a verb of a function: its docstring is the help.

    Args:
        name: The verb.
        examples: Commands, one per line, the most usual first.
        usage: What stands behind the verb, where Click's own line does not say it.
    """
    return click.command(
        name,
        cls=VerbCommand,
        examples=examples,
        usage=usage,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": 80,
            "terminal_width": 80,
        },
    )


COMPLETE: Final = "_FLAIR2_EXP_COMPLETE"
"""Environment variable by which a shell asks what completes a line: the line up to the cursor."""

SHELLS: Final = ("bash", "zsh", "fish")
"""Those that TAB works in."""

RUN: Final = "run"
"""The verb that may be omitted."""

VERBS: Final[Mapping[str, Verb]] = {
    RUN: Verb("", "an experiment, sweep or search: what a command without a verb is"),
    "new": Verb("flair2_exp.cli.new:command", "write a small project of your own"),
    "download": Verb("flair2_exp.cli.download:command", "FLAIR #2's archives, unpacked"),
    "sample": Verb("flair2_exp.cli.sample:command", "write the synthetic sample, or one scene"),
    "check": Verb("flair2_exp.cli.check:command", "every file of a data set, all damage at once"),
    "stats": Verb("flair2_exp.cli.stats:command", "bands and classes of the training patches"),
    "prepare": Verb("flair2_exp.cli.prepare:command", "decode the patches once: faster epochs"),
    "check-model": Verb("flair2_exp.cli.check_model:command", "does a network keep the contract?"),
    "status": Verb("flair2_exp.cli.status:status", "how far runs, sweeps and searches are"),
    "runs": Verb("flair2_exp.cli.runs:command", "a table of runs: filter, sort, columns"),
    "show": Verb("flair2_exp.cli.show:command", "all about one run"),
    "compare": Verb("flair2_exp.cli.compare:command", "two runs: config, scores, curves"),
    "rerun": Verb("flair2_exp.cli.rerun:command", "the same run again, in a new folder"),
    "rm": Verb("flair2_exp.cli.rm:command", "remove runs and sweeps, in MLflow too"),
    "repair": Verb("flair2_exp.cli.repair:command", "close what killed processes left open"),
    "cancel": Verb("flair2_exp.cli.status:end", "end a sweep's jobs, each with a checkpoint"),
    "report": Verb("flair2_exp.cli.report:command", "a leaderboard with error bars from runs"),
    "ui": Verb("flair2_exp.cli.ui:command", "MLflow's pages of your runs in the browser"),
    "deliver": Verb("flair2_exp.cli.deliver:command", "send to MLflow what runs could not send"),
    "predict": Verb("flair2_exp.cli.predict:command", "a map, a split as rasters, or its scores"),
    "submit": Verb("flair2_exp.cli.submit:command", "write or check a challenge submission"),
    "export": Verb("flair2_exp.cli.export:command", "a network as ONNX, torch.export, safetensors"),
    "completion": Verb("flair2_exp.cli.completion:command", "TAB in bash, zsh and fish"),
}


def verb_of(arguments: Sequence[str]) -> Verb | None:
    """Return the verb that a command line begins with; None where it is Hydra's.

    Raises:
        UsageError: It begins with a word that is nearly one.
    """
    word = arguments[0] if arguments else ""
    if not word or not (word[0].isalpha() and "=" not in word):
        return None
    near = difflib.get_close_matches(word.lower(), VERBS, n=1, cutoff=0.7)
    if word not in VERBS and near:
        raise UsageError(f"{word}: no such verb; did you mean `{PROGRAM} {near[0]}`?")
    return None if word == RUN else VERBS.get(word)


def _is_of_a_file(error: click.ClickException) -> bool:
    """Return whether a word is refused because of the file or folder that it names."""
    if isinstance(error, click.MissingParameter) or not isinstance(error, click.BadParameter):
        return False
    return error.param is not None and isinstance(error.param.type, click.Path)


def _sentence(text: str) -> str:
    """Return Click's message without its capital and its stop, as one's own begin."""
    text = text.strip().removesuffix(".")
    return text[:1].lower() + text[1:]
