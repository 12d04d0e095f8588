import random

from training.captions import ALIASES, BACKGROUNDS, CaptionOdds, all_words, caption, other_names

SUBJECTS = ["red apple", "green apple", "grinning cat", "rocket"]


def captions(odds: CaptionOdds, count: int = 300) -> list[str]:
    rng = random.Random(0)
    names = other_names(SUBJECTS)
    return [caption("red apple", "glossy", "sky blue", names, odds, rng) for _ in range(count)]


def test_a_caption_always_holds_the_subject_or_another_name_of_it() -> None:
    assert all("apple" in text.split() for text in captions(CaptionOdds()))


def test_style_and_background_come_as_often_as_asked() -> None:
    texts = captions(CaptionOdds(style=0.5, background=0.5))
    assert 0.4 < sum("glossy" in text for text in texts) / len(texts) < 0.6
    assert 0.4 < sum(" blue" in text for text in texts) / len(texts) < 0.6
    plain = captions(CaptionOdds(style=0, background=0, filler=0))
    assert not any("glossy" in text or "blue" in text for text in plain)


def test_captions_are_single_spaced_words() -> None:
    assert all(text == " ".join(text.split()) for text in captions(CaptionOdds(filler=1)))


def test_other_names_are_of_subjects_that_exist() -> None:
    names = other_names(SUBJECTS)
    assert names == {"red apple": ("apple",), "green apple": ("apple",), "grinning cat": ("happy cat",)}


def test_all_words_cover_every_caption_but_random_letters() -> None:
    known = set(all_words(SUBJECTS))
    odds = CaptionOdds(filler=0)
    assert {word for text in captions(odds) for word in text.split()} - {","} <= known


def test_aliases_and_backgrounds_are_plain_words() -> None:
    assert all(word.isascii() and word == word.lower() for word in (*ALIASES, *BACKGROUNDS))
    assert all(0 <= level <= 255 for colour in BACKGROUNDS.values() for level in colour)
