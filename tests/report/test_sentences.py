from __future__ import annotations

from flair2_exp.report import words
from flair2_exp.report.results import Contrast, Difference
from flair2_exp.report.sentences import sentence


def difference(
    value: float | None = 0.012,
    p: float | None = 0.01,
    holm: float | None = 0.02,
    seeds_known: bool = True,
) -> Difference:
    low, high = (None, None) if value is None or p is None else (value - 0.009, value + 0.009)
    error = None if p is None else 0.004
    return Difference("utt", "unet", Contrast(value, error, low, high, p, holm), (), seeds_known)


def test_sentences_claim_what_the_test_shows() -> None:
    assert sentence(difference(), 10) == (
        "utt − unet: +0.0120 mIoU, 95 % interval [+0.0030, +0.0210], p = 0.020 "
        "(Holm over 10 comparisons): more than the luck of areas and seeds explains."
    )
    alone = sentence(difference(holm=0.0999), 10)
    assert "not distinguishable" in alone
    assert "p = 0.010 if it had been the only one" in alone
    unsure = sentence(difference(0.002, 0.6, 1.0), 1)
    assert "does not show that they are equal" in unsure
    assert "from −0.0070 to +0.0110" in unsure
    assert "(one comparison)" in unsure


def test_sentences_say_what_is_not_known() -> None:
    assert "the luck of the seed is unknown" in sentence(difference(seeds_known=False), 1)
    assert "no interval can be given" in sentence(difference(0.012, None, None), 1)
    same = Difference("utt", "unet", Contrast(0.0, 0.0, 0.0, 0.0, 1.0, 1.0), (), True)
    assert sentence(same, 1).endswith("the two are equal.")


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
