"""Rows of other training patches and the same test patches make one report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.configs import SMALL_SAMPLE


@pytest.mark.thorough
def test_shares_of_the_labels_are_compared_and_each_normalised_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = answer(
        "sweep=label_fraction", "split.label_fraction=0.25,1.0", "seed=1,2", "model=unet",
        "preset=debug", "trainer=cpu", "tracking=off", *SMALL_SAMPLE, f"paths.root={tmp_path}",
        "data.normalisation=dataset",
    )  # fmt: skip
    assert done.status == 0, done.err
    sweep = tmp_path / "multirun" / "label_fraction"
    report = json.loads((sweep / "report" / "leaderboard.json").read_text())
    rows = ["unet_labels_0.25", "unet_labels_1.0"]
    assert sorted(row["row"] for row in report["rows"]) == rows
    records = [RunRecord.read(RunFolder(sweep / row / "seed=1")) for row in rows]
    tags = [record.tags for record in records if record is not None]
    assert tags[0][Tag.FINGERPRINT] != tags[1][Tag.FINGERPRINT]
    assert tags[0][Tag.TEST_FINGERPRINT] == tags[1][Tag.TEST_FINGERPRINT] != ""
    # One computation per share, which its two seeds have in common.
    assert len([*(tmp_path / "cache").rglob("statistics-*.json")]) == 2
    logs = "".join(path.read_text() for path in sweep.rglob("*.log"))
    assert len(re.findall(r"computing the statistics of \d+ training patches", logs)) in (0, 2)
