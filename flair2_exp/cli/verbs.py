"""The verbs of a command line: `python -m flair2_exp VERB …`, for all that is not an experiment.

A verb is the first word, and has no `=`; everything else is Hydra's.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from flair2_exp.errors import UsageError

PROGRAM: Final = "python -m flair2_exp"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        place: `module:function`, imported when it is called. The function takes the words behind
            the verb and returns the exit status; mistakes are `FlairError`.
        help: What it does, in a few words.
    """

    place: str
    help: str

    def __call__(self, arguments: Sequence[str]) -> int:
        """Do what the words behind the verb say; return the exit status."""
        module, _, function = self.place.partition(":")
        run: Any = getattr(importlib.import_module(module), function)
        return cast(Callable[[Sequence[str]], int], run)(arguments)


VERBS: Final = {
    "new": Verb("flair2_exp.cli.new:main", "write a small project of your own"),
    "deliver": Verb("flair2_exp.cli.deliver:main", "send to MLflow what runs could not send"),
    "status": Verb("flair2_exp.cli.status:status", "how far sweeps and searches are"),
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
