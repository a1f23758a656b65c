"""Parses a model's answers: letters, options, single words, by the rules of the reference's evaluation scripts."""

import re
from collections.abc import Sequence

FALLBACK = 2  # the third option, even if there are only two


def without_answer(text: str) -> str:
    """Remove the words "answer" and "Answer", whose A would be taken for an option."""
    return text.replace("answer", "").replace("Answer", "")


def find_letter(text: str, letters: str) -> str | None:
    """The first of the letters anywhere in the text; None if there is none."""
    match = re.search(f"[{letters}]", without_answer(text))
    return match[0] if match else None


def find_piece(text: str, letters: str, commas: bool = False) -> str | None:
    """The first of the letters, with the adjoining characters that the reference does not strip; None if there is none.

    Brackets next to the letter are stripped, so "(B)" gives "B". A comma after a bracket ("(B), the dog") and a space inside
    brackets ("( B )") are kept: the result then equals no letter.

    Args:
        commas: whether commas belong to the result (MVBench) or end it (EgoSchema).
    """
    around = ", " if commas else " "
    match = re.search(f"[({around}]*[{letters}][){around}]*", without_answer(text))
    return match[0].strip().strip("()") if match else None


def find_option(text: str, options: Sequence[Sequence[str]]) -> int | None:
    """Index of the first option with a spelling that occurs in the text, ignoring case; None if there is none."""
    lowered = without_answer(text).lower()
    for index, spellings in enumerate(options):
        if any(spelling.lower() in lowered for spelling in spellings):
            return index
    return None


def letter_of(index: int) -> str:
    """The letter of an option: A for 0."""
    return chr(ord("A") + index)


def letters_of(options: Sequence[str]) -> str:
    return "".join(letter_of(index) for index in range(len(options)))


def ends_equal(text: str, truth: str) -> bool:
    """Equality ignoring case, and spaces and full stops at the end of the text (but not of the truth)."""
    return text.rstrip(" .").upper() == truth.upper()
