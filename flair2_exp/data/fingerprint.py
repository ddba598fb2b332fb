"""What data a run is scored on, as one short text: of its split and of the files that it reads.

    fingerprint(groups, frozenset({"aerial", "satellite"}))

It is of content alone: which patches are in which part, what the source knows of them (of FLAIR #2
what the two JSON files say), and of each file a digest (`digests`). Neither places nor times count,
so a copy of a tree has the original one's fingerprint. Importing this takes NumPy and little else:
commands that train nothing ask for it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flair2_exp.config.data import DataGroups
from flair2_exp.data import splits, store
from flair2_exp.data.sample import tree
from flair2_exp.data.source import PARTS, DataSource, open_source
from flair2_exp.data.splits import Split


def fingerprint(groups: DataGroups, reads: frozenset[str], names: Sequence[str] = PARTS) -> str:
    """Return the fingerprint of the data that some groups of the config name.

    With a prepared store it is that of the files the store was prepared from; masks are always
    read. `names` are the parts that count, as for `of_split`.

    Returns:
        64 hexadecimal digits; empty where the data are a sample that is not made yet. Runs may have
        been scored on a sample that was removed since. It is made again from its options alone, so
        whoever gets no fingerprint compares `dataset.sample`, or makes the sample first.

    Raises:
        DataError: The data set or the store is missing, or does not go with the split.
    """
    dataset = groups.dataset
    sample, root = dataset.sample, dataset.root
    if sample is not None and root is not None and not tree.is_made(root, sample):
        return ""
    source = open_source(groups, reads)
    return of_split(source, splits.split(source.index, groups.split), groups, reads, names)


def of_split(
    source: DataSource,
    split: Split,
    groups: DataGroups,
    reads: frozenset[str],
    names: Sequence[str] = PARTS,
) -> str:
    """Return the fingerprint of a data set that is listed and divided already.

    Args:
        source: The data set.
        split: Its parts.
        groups: What to read and how.
        reads: What is read.
        names: The parts that count. That of the test part alone is equal for runs that are trained
            on other patches and scored on the same ones.

    Raises:
        DataError: The store is missing or of another data set.
    """
    digest = hashlib.sha256()
    index, parts = source.index, {name: split.parts()[name] for name in names}
    patches = np.concatenate(list(parts.values()))
    if groups.dataset.store is None:
        files = source.digests(patches, reads)
    else:
        stored = store.read_table(Path(groups.dataset.store).expanduser(), index)
        files = np.where(source.read_files(reads)[:, None], stored["digests"][patches], 0)
    ends = np.cumsum([len(positions) for positions in parts.values()])
    of_parts = zip(parts.items(), np.split(files, ends[:-1]), strict=True)
    for (part, positions), its_files in of_parts:
        for content in (
            part.encode(),
            "\n".join(index.ids[positions].tolist()).encode(),
            "\n".join(index.area_names[index.area[positions]].tolist()).encode(),
            *source.known(positions, reads),
            its_files.tobytes(),
        ):
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
    return digest.hexdigest()
