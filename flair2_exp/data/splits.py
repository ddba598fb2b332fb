"""Which patches train, validate and test."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import SplitConfig
from flair2_exp.data.layout import DOMAIN, Index
from flair2_exp.data.source import PARTS, Patches
from flair2_exp.errors import ConfigError, DataError

OFFICIAL_TRAIN: Final = frozenset(
    {6, 7, 8, 9, 13, 16, 17, 21, 23, 30, 32, 33, 34, 35, 38, 41, 44, 46, 49, 51, 52, 55, 60, 63}
    | {70, 72, 74, 78, 80, 81, 86, 91}
)
"""Domain numbers that train in the official split."""

OFFICIAL_VALIDATION: Final = frozenset({4, 14, 29, 31, 58, 66, 67, 77})
"""Domain numbers that validate in the official split."""

OFFICIAL_TEST: Final = frozenset({15, 22, 26, 36, 61, 64, 68, 69, 71, 84})
"""Domain numbers of the official test set."""

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of patches in an index, ascending; no patch is in two of them."""

    train: Positions
    validation: Positions
    test: Positions

    def parts(self) -> dict[str, Positions]:
        """Return the three parts by name."""
        return {name: getattr(self, name) for name in PARTS}


def split(index: Patches, options: SplitConfig) -> Split:
    """Divide a data set's patches, and draw the training patches that `label_fraction` leaves.

    `official`: the data set's own split. FLAIR #2's: patches of the train tree by the number of
    their domain; the test tree tests.
    `reference`: the baseline's way with the directory listing replaced by a sorted one: the train
    tree's domains are shuffled with the seed, the first ⌊train_fraction · n⌋ train, the rest
    validate; the test tree tests. `leave_domains_out`: the same of the domains of the train tree
    that are not named; those named test. `file`: what a YAML file says.

    Returns:
        Positions in `index`; a part may be empty (see `require`).

    Raises:
        DataError: A domain has no place in the official split, the file is not as it should be, or
            the train tree lacks a domain that is to be held out.
    """
    if options.name == "file":
        whole = _from_file(index, str(options.file))  # SplitConfig refuses a split without its file
    elif options.name == "official" and not isinstance(index, Index):
        whole = _own(index)
    else:
        whole = _by_domain(index, options)
    if options.label_fraction == 1:
        return whole
    drawn = _in_order_of_labels(index, whole.train, options.label_seed)
    count = max(1, round(options.label_fraction * len(drawn)))
    return dataclasses.replace(whole, train=np.sort(drawn[:count]))


def _by_domain(index: Patches, options: SplitConfig) -> Split:
    """Return a split by domains: the train tree's train and validate, but for those held out."""
    domains = index.domains
    tree = ~index.test
    test = index.test
    if options.name == "leave_domains_out":
        _require_domains(options.domains, sorted(set(domains[tree].tolist())))
        test = tree & np.isin(domains, np.array(options.domains, dtype=np.str_))
        tree &= ~test
    names = sorted(set(domains[tree].tolist()))
    if options.name == "official":
        validation = {name for name in names if _official_part(name) == "validation"}
    else:
        random.Random(options.seed).shuffle(names)
        validation = set(names[int(len(names) * options.train_fraction) :])
    validates = np.isin(domains, np.array(sorted(validation), dtype=np.str_))
    return Split(
        train=np.flatnonzero(tree & ~validates),
        validation=np.flatnonzero(tree & validates),
        test=np.flatnonzero(test),
    )


def _own(index: Patches) -> Split:
    """Return the split that a data set brings along.

    Raises:
        DataError: It leaves open where a patch belongs.
    """
    part = np.zeros(len(index), np.str_) if index.part is None else index.part
    unknown = np.flatnonzero(~np.isin(part, PARTS))
    if len(unknown):
        raise DataError(
            f"split=official: the data set does not say to which part {len(unknown)} of "
            f"{len(index)} patches belong, such as {index.name(int(unknown[0]))}.\n"
            "Use split=reference (by seed) or split=file."
        )
    return Split(**{name: np.flatnonzero(part == name) for name in PARTS})


def _require_domains(wanted: Sequence[str], present: Sequence[str]) -> None:
    """Refuse domains to be held out that the train tree lacks."""
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=3) or present[:3]
            raise DataError(
                f"split.domains: the train tree has no domain {name} (nearest: "
                f"{', '.join(near)}).\nName domains of the train tree in split.domains."
            )


def _in_order_of_labels(index: Patches, patches: Positions, seed: int) -> Positions:
    """Return training patches in the order in which a growing share of them is used.

    First comes one patch of each domain; then each domain's others, evenly spread over the order,
    so that every beginning holds the domains in their proportions. Patches of a domain, and domains
    that are due at the same time, are in the order of a hash of seed and name: what else the data
    set holds does not matter.
    """
    domains = index.domains[patches]
    names = index.ids[patches]
    due = np.empty(len(patches))
    for domain in np.unique(domains).tolist():
        own = np.flatnonzero(domains == domain)
        drawn = sorted(own.tolist(), key=lambda at: _drawn(seed, domain, str(names[at])))
        start = _drawn(seed, domain)
        due[drawn] = (np.arange(len(own)) + start) / len(own)
        due[drawn[0]] = start - 1  # before all that are not the first of their domain
    order: Positions = patches[np.argsort(due, kind="stable")]
    return order


def _drawn(*names: object) -> float:
    """Return a number in 0..1 that looks random and depends on these names alone."""
    text = "/".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") / 2**64


def require(parts: dict[str, Positions], options: SplitConfig, needed: tuple[str, ...]) -> None:
    """Refuse, with a DataError, a split whose parts that a run needs hold no patches."""
    for name in needed:
        if not len(parts[name]):
            counts = ", ".join(f"{part} {len(positions)}" for part, positions in parts.items())
            raise DataError(
                f"split={options.name} leaves no {name} patches ({counts}).\n{_fix(options, name)}"
            )


def _fix(options: SplitConfig, name: str) -> str:
    if name == "test" and options.name in ("official", "reference"):
        return "Give the test tree (dataset.aerial_test), set test=false, or use split=file."
    if options.name == "official":
        return "Use split=reference, or split=file with domains that the data set has."
    if options.name == "leave_domains_out":
        return "Hold fewer domains out (split.domains), or change split.train_fraction."
    if options.name == "reference":
        return "Change split.train_fraction, or use split=file."
    return f"List domains, areas or patch ids under `{name}:` in split.file={options.file}."


def _official_part(domain: str) -> str:
    """Return `train` or `validation` for a domain of the train tree."""
    number = int(domain[1:4]) if DOMAIN.fullmatch(domain) else -1
    if number in OFFICIAL_VALIDATION:
        return "validation"
    if number in OFFICIAL_TRAIN:
        return "train"
    where = "belongs to the test set" if number in OFFICIAL_TEST else "is not in the official split"
    raise DataError(
        f"domain {domain} {where}, but lies in the train tree.\n"
        "Move it to the test tree, or use split=reference or split=file."
    )


def read_names(file: str) -> dict[str, object]:
    """Return what a split's file lists for each part; the names are not looked up.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    from flair2_exp.config import yaml_files  # late: a fingerprint takes NumPy and little else

    try:
        content = yaml_files.read(Path(file).expanduser())
    except ConfigError as error:
        raise DataError(f"split.file={file} cannot be read as YAML.\n{error}") from None
    if not isinstance(content, dict) or not set(content) <= set(PARTS):
        raise DataError(
            f"split.file={file} must hold lists `train`, `validation` and `test` and nothing else."
        )
    return content


def _from_file(index: Patches, file: str) -> Split:
    """Return the split that a YAML file of names describes."""
    content = read_names(file)
    places = _places(index)
    chosen = {part: _chosen(content.get(part), part, places, file) for part in PARTS}
    for one, other in itertools.combinations(PARTS, 2):
        both = np.intersect1d(chosen[one], chosen[other])
        if len(both):
            raise DataError(
                f"split.file={file} puts {index.ids[both[0]]} into {one} and {other}.\n"
                f"Take it ({len(both)} patches in all) out of one of them."
            )
    return Split(**chosen)


def _places(index: Patches) -> dict[str, Positions]:
    """Return positions by name of domain, area or patch."""
    places: dict[str, Positions] = {}
    for values in (index.domains, index.area_names[index.area], index.ids):
        order = np.argsort(values, kind="stable")
        names, starts = np.unique(values[order], return_index=True)
        places.update(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
    return places


def _chosen(names: object, part: str, places: dict[str, Positions], file: str) -> Positions:
    """Return positions of everything a list names."""
    names = [] if names is None else names
    if not isinstance(names, list):
        raise DataError(f"split.file={file}: `{part}` must be a list, not {names!r}.")
    chosen: list[Positions] = [np.empty(0, dtype=np.int64)]
    for name in names:
        if str(name) not in places:
            near = difflib.get_close_matches(str(name), places, n=3)
            hint = f"nearest: {', '.join(near)}" if near else "write names like D004_2021"
            raise DataError(
                f"split.file={file}: `{part}` names {name!r}, which the data set lacks ({hint})."
            )
        chosen.append(places[str(name)])
    return np.unique(np.concatenate(chosen))
