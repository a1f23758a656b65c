"""Reading answers: the rules of the reference's evaluation scripts."""

import pytest

from videollama_benchmarks.answers import choose_option, find_letter, find_option, same_word
from videollama_benchmarks.choices import shown_subtitles, subtitle_frames


@pytest.mark.parametrize(
    ("text", "letters", "letter"),
    [
        ("(B)", "ABCD", "B"),
        ("B", "ABCD", "B"),
        ("The best answer is: (C) a cat", "ABCD", "C"),
        ("Answer: D", "ABCD", "D"),  # the A of "Answer" is no option
        ("answer D", "ABCD", "D"),
        ("(E)", "ABCD", None),
        ("none of these", "ABCD", None),
        ("the blue cross: (B)", "ABCD", "B"),
    ],
)
def test_letters(text, letters, letter):
    assert find_letter(text, letters) == letter


def test_an_option_is_found_by_its_words():
    assert find_option("It is a red car.", ["A blue bike.", "a red car."]) == 1
    assert find_option("there are three", ["2", "3"], digits_as_words=True) == 1
    assert find_option("there are three", ["2", "3"]) is None


@pytest.mark.parametrize(
    ("text", "index"),
    [("(A)", 0), ("it is the dog", 1), ("no idea", 2), ("", 2)],  # the third is the fallback
)
def test_a_choice_is_letter_then_words_then_the_third(text, index):
    assert choose_option(text, ["cat", "dog", "cow", "hen"]) == index


def test_the_fallback_stays_inside_two_options():
    assert choose_option("no idea", ["cat", "dog"]) == 1


def test_words_are_equal_without_case_and_full_stop():
    assert same_word("Yes. ", "yes") and not same_word("yes it is", "yes")


def test_subtitles_are_picked_at_moments_of_their_own():
    """Boundaries are rounded first, then the middle is taken: not the frames that the model sees."""
    assert subtitle_frames(17, 4) == [2, 6, 10, 14]
    srt = (
        "1\r\n00:00:00,000 --> 00:00:01,000\r\n<i>Hello</i>\r\nthere\r\n\r\n"
        "2\n00:00:05,000 --> 00:00:06,500\nNever seen\n\n3\n00:00:15,000 --> 00:01:00,000\nBye\n"
    )
    # 16 moments over 160 frames at 5 per second: 1, 3, 5 ... seconds, minus a little
    assert shown_subtitles(srt, 160, 5.0) == ["Hello there", "Never seen", "Bye"]
    assert shown_subtitles(srt, 16, 5.0) == ["Hello there"]
    assert shown_subtitles("not an srt", 160, 5.0) == []
