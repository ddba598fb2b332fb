from __future__ import annotations

import math

from flair2_exp.report import words
from flair2_exp.report.power import Outlook
from flair2_exp.report.results import Contrast, Difference
from flair2_exp.report.sentences import outlook_sentence, sentence


def difference(
    value: float | None = 0.012,
    p: float | None = 0.01,
    joint_p: float | None = 0.02,
    known: bool = True,
) -> Difference:
    low, high = (value - 0.009, value + 0.009) if value is not None and known else (None, None)
    score = Contrast(value, 0.004, low, high, p=p, joint_low=low, joint_high=high, joint_p=joint_p)
    return Difference("utt", "unet", score, (), seeds_known=joint_p is not None)


def test_sentences_claim_what_the_test_shows() -> None:
    assert sentence(difference(), 10) == (
        "utt − unet: +0.0120 mIoU, 95 % interval [+0.0030, +0.0210], p = 0.020 "
        "(joint over 10 comparisons): more than the luck of areas and seeds explains."
    )
    alone = sentence(difference(joint_p=0.0999), 10)
    assert "not distinguishable" in alone
    assert "p = 0.010 if it had been the only one" in alone
    unsure = sentence(difference(0.002, 0.6, 1.0), 1)
    assert "does not show that they are equal" in unsure
    assert "from −0.0070 to +0.0110" in unsure
    assert "(one comparison)" in unsure


def test_sentences_say_what_is_not_known() -> None:
    assert "no interval can be given" in sentence(difference(known=False), 1)
    zero = dict.fromkeys(("value", "error", "low", "high", "joint_low", "joint_high"), 0.0)
    same = Difference("utt", "unet", Contrast(**zero, p=1.0, joint_p=1.0), (), True)
    assert sentence(same, 1).endswith("the two are equal.")


def test_a_row_with_a_single_run_gets_an_interval_and_no_verdict() -> None:
    assert sentence(difference(p=None, joint_p=None), 0, "domain") == (
        "utt − unet: +0.0120 mIoU, 95 % interval [+0.0030, +0.0210] over domains alone: a row has "
        "a single run, so there is no verdict."
    )


def test_seeds_are_planned_in_a_sentence() -> None:
    outlook = Outlook(unit_variance=1e-6, units=10, seed_variance=1e-4, comparisons=1)
    said = outlook_sentence(outlook, "domain")
    assert f"{outlook.visible(3):.4f} with 3" in said
    assert f"{outlook.visible(math.inf):.4f} however many, for these 10 test domains" in said
    asked = outlook_sentence(outlook, "domain", 0.02)
    assert asked.endswith(f"0.02 needs {outlook.seeds_for(0.02)} seeds per row.")
    assert outlook_sentence(outlook, "domain", 0.001).endswith("it needs more test domains.")


def test_numbers_read_well() -> None:
    assert words.signed(-0.00001) == "0.0000"
    assert words.signed(-0.0123) == "−0.0123"
    assert words.p_value(0.0001) == "< 0.001"
    assert words.number(None) == "–"
    assert words.plural(1, "area") == "1 area"
    assert words.plural(16_050, "area") == "16,050 areas"
    assert [words.duration(each) for each in (2.5, 357.0, 11_100.0)] == [
        "2.5 s", "5:57 min", "3 h 05 min",
    ]  # fmt: skip
