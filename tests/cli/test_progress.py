from __future__ import annotations

import pytest

from flair2_exp import progress as room
from flair2_exp.cli.progress import progress


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def test_without_a_terminal_a_line_comes_every_half_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("tiles") as report:
        for done in range(1, 101):
            clock.now += 10
            report(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 33
    assert lines[0] == "tiles: 3 of 100, 24 min left"
    assert lines[-1] == "tiles: 99 of 100, less than a minute left"


def test_the_time_left_does_not_count_what_an_earlier_command_had_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("tiles") as report:
        report(900, 1000)
        clock.now += 3600
        report(950, 1000)
    assert capsys.readouterr().err == "tiles: 950 of 1,000, 1 h 0 min left\n"


def test_a_short_command_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("tiles") as report:
        report(1, 2)
        report(2, 2)
    assert capsys.readouterr().err == ""
