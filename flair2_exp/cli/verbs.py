"""The verbs of a command line: `flair2-exp VERB …`, for all that is not an experiment.

A verb is the first word, and has no `=`; everything else is Hydra's. Each is a command of Click's,
imported when it is called.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

import click

from flair2_exp.errors import UsageError

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
        command: Any = self.command
        if not isinstance(command, click.Command):  # until all verbs are commands
            return int(command(list(arguments)))
        name = f"{PROGRAM} {command.name}"
        try:
            return int(command.main(list(arguments), name, standalone_mode=False) or 0)
        except click.ClickException as error:
            raise UsageError(f"{_sentence(error.format_message())}; see `{name} --help`.") from None
        except click.Abort:
            raise KeyboardInterrupt from None


class VerbCommand(click.Command):
    """A verb, whose help shows its examples first.

    Args:
        examples: Commands, one per line.
        **options: As of `click.Command`.
    """

    def __init__(self, *, examples: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the verb does, and how it is used."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            formatter.write_paragraph()
            for line in self.examples:
                formatter.write(f"  {line}\n")


def verb(name: str, *, examples: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """Return a decorator that makes a verb of a function: its docstring is the help.

    Args:
        name: The verb.
        examples: Commands, one per line, the most usual first.
    """
    return click.command(
        name,
        cls=VerbCommand,
        examples=examples,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            "terminal_width": 100,
        },
    )


VERBS: Final = {
    "new": Verb("flair2_exp.cli.new:main", "write a small project of your own"),
    "deliver": Verb("flair2_exp.cli.deliver:command", "send to MLflow what runs could not send"),
    "status": Verb("flair2_exp.cli.status:status", "how far runs, sweeps and searches are"),
    "runs": Verb("flair2_exp.cli.runs:command", "a table of runs: filter, sort, columns"),
    "show": Verb("flair2_exp.cli.show:command", "all about one run"),
    "compare": Verb("flair2_exp.cli.compare:command", "two runs: config, scores, curves"),
    "rerun": Verb("flair2_exp.cli.rerun:command", "the same run again, in a new folder"),
    "rm": Verb("flair2_exp.cli.rm:command", "remove runs and sweeps, in MLflow too"),
    "repair": Verb("flair2_exp.cli.repair:command", "close what killed processes left open"),
    "cancel": Verb("flair2_exp.cli.status:end", "end a sweep's jobs, each with a checkpoint"),
    "stats": Verb("flair2_exp.cli.stats:main", "bands and classes of the training patches"),
    "predict": Verb("flair2_exp.cli.predict:main", "a map, a split as rasters, or its scores"),
    "submit": Verb(
        "flair2_exp.cli.submit:main", "a submission to the challenge, or a check of one"
    ),
    "export": Verb("flair2_exp.cli.export:main", "a network as ONNX, torch.export or safetensors"),
    "check-model": Verb("flair2_exp.cli.check_model:main", "does a network keep the contract?"),
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
    return VERBS.get(word)


class Parser(argparse.ArgumentParser):
    """A verb's parser, whose mistakes are explained as all others are."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with its usage."""
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def _sentence(text: str) -> str:
    """Return Click's message without its capital and its stop, as one's own begin."""
    text = text.strip().removesuffix(".")
    return text[:1].lower() + text[1:]
