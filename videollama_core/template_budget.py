"""The budget of a chat template while it is rendered, and everything that spends from it.

Each function stands for something that a template can repeat or make grow; `template.py` puts them into its syntax tree.
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

_SECONDS = 5.0  # of the thread's own time, should steps be slower than they are thought to be
_CHARACTERS_A_STEP = 64
_LARGEST_ARGUMENT = 10_000  # a number given to a filter or a method: widths and counts
_LARGEST_INDENT = 16
_MOST_STRIPPED = 64  # different characters that `strip` and `trim` are given


class Exceeded(jinja2.TemplateError):
    pass


@dataclass
class Budget:
    steps: int = TEMPLATE_STEPS.value
    characters: int = RENDERED_CHARACTERS.value
    deadline: float = field(default_factory=lambda: time.thread_time() + _SECONDS)

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0 or time.thread_time() > self.deadline:
            raise Exceeded(f"it takes more than {TEMPLATE_STEPS.value} steps or {_SECONDS:g} s")


BUDGET: ContextVar[Budget] = ContextVar("budget of the template that is being rendered")


def each(items: Any, steps: int) -> Any:
    """Items of a loop whose body costs so many steps."""
    found = items if hasattr(items, "__len__") else list(itertools.islice(items, BUDGET.get().steps + 1))
    BUDGET.get().spend(steps * (len(found) + 1))
    return found


def made(value: Any) -> Any:
    """Spend what a value weighs, all that hangs on it included: a list of itself twice, forty times over, is large."""
    budget, steps, stack = BUDGET.get(), 0, [value]
    while stack:
        found = stack.pop()
        steps += 1
        if isinstance(found, str):
            check_size(len(found))
            steps += len(found) // _CHARACTERS_A_STEP
        elif isinstance(found, (list, tuple, set)):
            stack.extend(found)
        elif isinstance(found, Mapping):
            stack.extend(found.keys())
            stack.extend(found.values())
        if steps + len(stack) > budget.steps:
            break
    budget.spend(steps + len(stack))
    return value


def string(value: Any) -> str:
    """As Jinja prints it. Raises: SecurityError for what is no text or number."""
    if not isinstance(value, (str, int, float, Undefined)) and value is not None:
        raise SecurityError(f"it prints {type(value).__name__}, which is no text")
    text = value if isinstance(value, str) else str(value)
    BUDGET.get().spend(1 + len(text) // _CHARACTERS_A_STEP)
    return text


def text(value: Any) -> str:
    """A part of the output, or of a block that is kept."""
    text, budget = string(value), BUDGET.get()
    budget.characters -= len(text)
    if budget.characters < 0:
        raise Exceeded(f"it writes more than {RENDERED_CHARACTERS.value} characters")
    return text


def check_size(size: int) -> None:
    if size > RENDERED_CHARACTERS.value:
        raise Exceeded(f"it makes a text of more than {RENDERED_CHARACTERS.value} characters")


def guard(name: str, run: Callable[..., Any], allowed: bool) -> Callable[..., Any]:
    """A filter or test that spends for what it is given and what it makes."""
    first = 1 if hasattr(run, "jinja_pass_arg") else 0  # the environment or context comes before the value

    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not allowed:
            raise SecurityError(f"the filter {name} has no place in a chat template")
        return made(run(*args[:first], *checked(name, args[first:], kwargs), **kwargs))

    return guarded


def checked(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], joined: int = 0) -> tuple[Any, ...]:
    """Arguments of a filter or method, the value first.

    Args:
        joined: place of what `join` joins: the value of the filter, the argument of the method.
    """
    values = [*args, *kwargs.values()]
    if name == "join":
        if len(values) > 2:
            raise SecurityError("join by an attribute has no place in a chat template")
        parts = [string(part) for part in itertools.islice(args[joined], BUDGET.get().steps + 1)]
        glue = sum(len(value) for place, value in enumerate(values) if place != joined and isinstance(value, str))
        check_size(sum(map(len, parts)) + glue * len(parts))
        args = (*args[:joined], parts, *args[joined + 1 :])
    if name == "replace":
        if len(values) < 3 or not all(isinstance(value, str) for value in values[:3]):
            raise SecurityError("replace is given what is no text")
        check_size(len(values[0]) + values[0].count(values[1]) * len(values[2]))
    if name in ("strip", "lstrip", "rstrip", "trim") and any(len(str(value)) > _MOST_STRIPPED for value in values[1:]):
        raise SecurityError(f"{name} is given more than {_MOST_STRIPPED} characters")
    largest = _LARGEST_INDENT if name == "tojson" else _LARGEST_ARGUMENT
    if any(isinstance(value, int) and abs(value) > largest for value in values[1:]):
        raise SecurityError(f"{name} is given a number above {largest}")
    made(values)
    return args
