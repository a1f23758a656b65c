"""The budget of a chat template while it is rendered, and everything that spends from it.

Each function charges for something that a template can repeat or grow; `template.py` puts them into its syntax tree.
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jinja2
from jinja2.runtime import Undefined
from jinja2.sandbox import SecurityError

from videollama_core.protocol.limits import RENDERED_CHARACTERS, TEMPLATE_STEPS

_SECONDS = 5.0  # of the thread's processor time, in case steps are slower than expected
_CHARACTERS_PER_STEP = 64
_LARGEST_ARGUMENT = 10_000  # a number given to a filter or a method: widths and counts
_LARGEST_INDENT = 16
_MOST_STRIPPED = 64  # characters in the argument of `strip` and `trim`


class Exceeded(jinja2.TemplateError):
    """The template exceeded its budget."""


@dataclass
class Budget:
    """What one rendering may still spend: steps, characters of output, and processor time."""

    steps: int = TEMPLATE_STEPS.value
    characters: int = RENDERED_CHARACTERS.value
    deadline: float = field(default_factory=lambda: time.thread_time() + _SECONDS)

    def spend(self, steps: int) -> None:
        """Raises: Exceeded."""
        self.steps -= steps
        if self.steps < 0 or time.thread_time() > self.deadline:
            raise Exceeded(f"it takes more than {TEMPLATE_STEPS.value} steps or {_SECONDS:g} s")


BUDGET: ContextVar[Budget] = ContextVar("budget of the template that is being rendered")


def charged_loop(items: Any, steps: int) -> Any:
    """Charge for a loop over `items` whose body costs `steps`; return the items as a sized collection."""
    sized = items if hasattr(items, "__len__") else list(itertools.islice(items, BUDGET.get().steps + 1))
    BUDGET.get().spend(steps * (len(sized) + 1))
    return sized


def charged(value: Any) -> Any:
    """Charge for a value by its size, contents included: a list that holds itself twice, forty levels deep, is large."""
    budget, steps, stack = BUDGET.get(), 0, [value]
    while stack:
        item = stack.pop()
        steps += 1
        if isinstance(item, str):
            check_size(len(item))
            steps += len(item) // _CHARACTERS_PER_STEP
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        if steps + len(stack) > budget.steps:
            break
    budget.spend(steps + len(stack))
    return value


def string(value: Any) -> str:
    """The value as Jinja prints it. Raises: SecurityError unless it is text or a number."""
    if not isinstance(value, (str, int, float, Undefined)) and value is not None:
        raise SecurityError(f"it prints {type(value).__name__}, which is not text")
    text = value if isinstance(value, str) else str(value)
    BUDGET.get().spend(1 + len(text) // _CHARACTERS_PER_STEP)
    return text


def text(value: Any) -> str:
    """A part of the output, or of a block that is captured."""
    text, budget = string(value), BUDGET.get()
    budget.characters -= len(text)
    if budget.characters < 0:
        raise Exceeded(f"it writes more than {RENDERED_CHARACTERS.value} characters")
    return text


def check_size(size: int) -> None:
    """Raises: Exceeded for a string of too many characters."""
    if size > RENDERED_CHARACTERS.value:
        raise Exceeded(f"it builds a string of more than {RENDERED_CHARACTERS.value} characters")


def guard(name: str, run: Callable[..., Any], allowed: bool) -> Callable[..., Any]:
    """Wrap a filter or test so that it is charged for its arguments and its result."""
    first = 1 if hasattr(run, "jinja_pass_arg") else 0  # the environment or context comes before the value

    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not allowed:
            raise SecurityError(f"the filter {name} is not allowed in a chat template")
        return charged(run(*args[:first], *checked_arguments(name, args[first:], kwargs), **kwargs))

    return guarded


def checked_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], joined: int = 0) -> tuple[Any, ...]:
    """Check and charge the arguments of a filter or method, the value first; return the positional ones.

    Args:
        joined: index of what `join` joins: the value of the filter, the argument of the method.
    Raises: SecurityError or Exceeded.
    """
    values = [*args, *kwargs.values()]
    if name == "join":
        if len(values) > 2:
            raise SecurityError("join by an attribute is not allowed in a chat template")
        parts = [string(part) for part in itertools.islice(args[joined], BUDGET.get().steps + 1)]
        glue = sum(len(value) for place, value in enumerate(values) if place != joined and isinstance(value, str))
        check_size(sum(map(len, parts)) + glue * len(parts))
        args = (*args[:joined], parts, *args[joined + 1 :])
    if name == "replace":
        if len(values) < 3 or not all(isinstance(value, str) for value in values[:3]):
            raise SecurityError("replace takes text alone")
        check_size(len(values[0]) + values[0].count(values[1]) * len(values[2]))
    if name in ("strip", "lstrip", "rstrip", "trim") and any(len(str(value)) > _MOST_STRIPPED for value in values[1:]):
        raise SecurityError(f"{name} takes at most {_MOST_STRIPPED} characters")
    largest = _LARGEST_INDENT if name == "tojson" else _LARGEST_ARGUMENT
    if any(isinstance(value, int) and abs(value) > largest for value in values[1:]):
        raise SecurityError(f"{name} takes numbers up to {largest}")
    charged(values)
    return args
