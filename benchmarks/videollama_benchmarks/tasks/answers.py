"""Reading a model's words: letters, options, single words. The rules are those of the reference's evaluation scripts."""

import re
from collections.abc import Sequence

FALLBACK = 2  # the third option, also where there are but two


def without_answer(text: str) -> str:
    """The words "answer" and "Answer" are deleted before a letter is looked for: their A is no option."""
    return text.replace("answer", "").replace("Answer", "")


def find_letter(text: str, letters: str) -> str | None:
    """The first of the letters that stands anywhere in the text."""
    found = re.search(f"[{letters}]", without_answer(text))
    return found[0] if found else None


def find_piece(text: str, letters: str, commas: bool = False) -> str | None:
    """The first of the letters together with what the reference does not take off it.

    Brackets right at the letter go, so that "(B)" is B; a comma after a bracket ("(B), the dog") and a space inside
    brackets ("( B )") stay: such a piece equals no letter.

    Args:
        commas: commas belong to the piece (MVBench), or end it (EgoSchema).
    """
    around = ", " if commas else " "
    found = re.search(f"[({around}]*[{letters}][){around}]*", without_answer(text))
    return found[0].strip().strip("()") if found else None


def find_option(text: str, options: Sequence[Sequence[str]]) -> int | None:
    """Index of the first option one of whose spellings occurs in the text, whatever the case."""
    lowered = without_answer(text).lower()
    for index, spellings in enumerate(options):
        if any(spelling.lower() in lowered for spelling in spellings):
            return index
    return None


def letter_of(index: int) -> str:
    return chr(ord("A") + index)


def letters_of(options: Sequence[str]) -> str:
    return "".join(letter_of(index) for index in range(len(options)))


def ends_equal(text: str, wanted: str) -> bool:
    """Equality in upper case, spaces and full stops at the end of the text aside; those of the truth count."""
    return text.rstrip(" .").upper() == wanted.upper()
