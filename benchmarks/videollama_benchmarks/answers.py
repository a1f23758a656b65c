"""Reading a model's words: letters, options, single words. The rules are those of the reference's evaluation scripts."""

import re
from collections.abc import Sequence

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def find_letter(text: str, letters: str) -> str | None:
    """The first of the letters that stands in the text, brackets, commas and spaces around it aside.

    The words "answer" and "Answer" are deleted first: their A is no option.
    """
    cleaned = text.replace("answer", "").replace("Answer", "")
    found = re.search(f"[(, ]*([{letters}])[), ]*", cleaned)
    return found[1] if found else None


def find_option(text: str, options: Sequence[str], digits_as_words: bool = False) -> int | None:
    """Index of the first option whose words occur in the text."""
    lowered = text.lower()
    for index, option in enumerate(options):
        wanted = option.strip().strip(".").lower()
        forms = [wanted]
        if digits_as_words and wanted.isdigit() and int(wanted) < len(_DIGIT_WORDS):
            forms.append(_DIGIT_WORDS[int(wanted)])
        if any(form and form in lowered for form in forms):
            return index
    return None


def choose_option(text: str, options: Sequence[str], fallback: int = 2, digits_as_words: bool = False) -> int:
    """Letter, else the option's words, else the third option: the reference's way to a choice."""
    letter = find_letter(text, "".join(letter_of(index) for index in range(len(options))))
    if letter is not None:
        return ord(letter) - ord("A")
    found = find_option(text, options, digits_as_words)
    return min(fallback, len(options) - 1) if found is None else found


def letter_of(index: int) -> str:
    return chr(ord("A") + index)


def same_word(text: str, wanted: str) -> bool:
    """Equality in upper case without trailing spaces and full stops."""
    return text.strip(" .").upper() == wanted.strip(" .").upper()
