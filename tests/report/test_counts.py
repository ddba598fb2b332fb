from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flair2_exp.errors import DataError
from flair2_exp.report.counts import read_counts
from tests.report.made_runs import make_arrays


def damage(path: Path, kind: str) -> None:
    arrays = make_arrays(areas=2, patches=2)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    changes: dict[str, dict[str, object]] = {
        "pickled": {"areas": np.array(arrays["areas"], dtype=object)},
        "negative": {"confusion": -arrays["confusion"]},
        "fractions": {"confusion": arrays["confusion"] / 2},
        "shape": {"confusion": arrays["confusion"][:-1]},
        "twice": {"patch_ids": np.array(["IMG_000001"] * 4)},
        "empty": {name: arrays[name][:0] for name in ("patch_ids", "areas", "confusion")},
    }
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "no archive":
        path.write_bytes(b"\0" * 300)
    elif kind == "missing":
        path.unlink()
    elif kind == "lacking":
        del arrays["areas"]
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        np.savez(path, **(arrays | changes[kind]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("missing", "is missing"), ("truncated", "is damaged"), ("no archive", "is damaged"),
     ("lacking", "areas"), ("pickled", "allow_pickle"), ("negative", "from 0 on"),
     ("fractions", "whole numbers"), ("shape", "4 patches"), ("twice", "counted twice"),
     ("empty", "no patch")],
)  # fmt: skip
def test_counts_that_cannot_be_used_are_named_with_the_fix(
    tmp_path: Path, kind: str, problem: str
) -> None:
    path = tmp_path / "counts.npz"
    damage(path, kind)
    with pytest.raises(DataError, match=rf"counts\.npz.*{problem}.*Test the run again"):
        read_counts(path)


def test_counts_are_summed_by_area(tmp_path: Path) -> None:
    arrays = make_arrays(areas=4, patches=2)
    np.savez(tmp_path / "counts.npz", **arrays)  # type: ignore[arg-type]
    counts = read_counts(tmp_path / "counts.npz")
    assert counts.patches == 8
    assert counts.confusion.shape == (4, 13, 13)
    assert counts.confusion.sum() == arrays["confusion"].sum()
    assert counts.areas == tuple(sorted(set(arrays["areas"])))
