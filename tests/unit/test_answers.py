"""Parsing answers by the rules of the reference's evaluation scripts."""

import pytest

from videollama_benchmarks.tasks.answers import ends_equal, find_letter, find_option, find_piece
from videollama_benchmarks.tasks.shapes import same_word
from videollama_benchmarks.tasks.videomme import shown_subtitles, subtitle_frames, video_length
from videollama_core.protocol.errors import BadSample


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


@pytest.mark.parametrize(
    ("text", "with_commas", "without"),
    [
        ("(B)", "B", "B"),
        ("B, the dog", "B,", "B"),
        ("(B), the dog", "B),", "B"),  # no letter for MVBench, whose reading then falls back to the third option
        ("is B, the dog", "B,", "B"),
        ("( B )", " B ", " B "),
        ("Answer: ((D))", "D", "D"),
        ("none", None, None),
    ],
)
def test_text_around_a_letter(text, with_commas, without):
    assert (find_piece(text, "ABCD", commas=True), find_piece(text, "ABCD")) == (with_commas, without)


def test_an_option_is_matched_by_its_exact_words():
    assert find_option("It is a red car.", [("A blue bike.",), ("a red car.",)]) == 1
    assert find_option("It is a red car", [("A blue bike.",), ("a red car.",)]) is None
    assert find_option("there are three", [("2", "two"), ("3", "three")]) == 1
    assert find_option("the answer", [("answer",), ("the",)]) == 1  # the word itself is deleted first


def test_words_are_equal_without_case_and_the_full_stop_of_the_answer():
    assert ends_equal("Yes. ", "yes") and not ends_equal("yes it is", "yes")
    assert not ends_equal(" yes", "yes") and not ends_equal("yes.", "yes.")
    assert same_word(" Yes.", "yes.")


def test_subtitles_are_picked_at_their_own_timestamps(tmp_path):
    """Boundaries are rounded first, then the midpoint is taken; these are not the frames that the model sees."""
    assert subtitle_frames(17, 4) == [2, 6, 10, 14]
    path = tmp_path / "x.srt"
    path.write_bytes(
        b"1\r\n00:00:00,000 --> 00:00:04,000\r\n<i>Hello</i>\r\nthere\r\n\r\n"
        b"2\r\n00:00:02,000 --> 00:00:03,500\r\nNever seen\r\n\r\n3\r\n00:00:15,000 --> 00:01:00,000\r\nBye\r\n"
    )
    hello = "{\\i1}Hello{\\i0} there"
    # 16 moments over 160 frames at 5 per second: 1, 3, 5 ... seconds, minus a little
    assert shown_subtitles(path, 160, 5.0, 16) == [hello] * 2 + ["Bye"] * 8
    assert shown_subtitles(path, 160, 5.0, 8) == [hello] + ["Bye"] * 4
    path.write_text("not an srt")
    with pytest.raises(BadSample, match="cannot be read as subtitles"):
        shown_subtitles(path, 160, 5.0, 16)


def test_a_video_that_cannot_be_opened_has_no_length(tmp_path):
    (tmp_path / "x.mp4").write_text("no video")
    assert video_length(tmp_path / "x.mp4") is None and video_length(tmp_path / "y.mp4") is None
