"""Chat templates from untrusted checkpoints: Jinja rendered within a budget of steps, characters and seconds.

Jinja's sandbox keeps a template away from Python, but lets it loop forever and build strings of gigabytes. Here its syntax
tree is rewritten before it is compiled, so that everything that repeats or grows first spends from a budget: loops, calls,
filters, tests, literals, slices, arithmetic and output. Constructs that chat templates do not need are rejected. A template
that stays within its budget renders exactly as with plain Jinja.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.limits import TEMPLATE_CHARACTERS
from videollama_core.template_budget import (
    BUDGET,
    Budget,
    Exceeded,
    charged,
    charged_loop,
    check_size,
    checked_arguments,
    guard,
    string,
    text,
)

_MOST_NODES = 20_000  # of a syntax tree; 300 in Qwen2.5's template with tools
_NUMBER_BITS = 128
_REFUSED = (
    *(nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block, nodes.CallBlock, nodes.FilterBlock),
    nodes.Pow,
)
_FILTERS = set(
    [
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "escape",
        "e",
        "first",
        "float",
        "forceescape",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "string",
        "title",
        "tojson",
        "trim",
        "upper",
    ]
)
_METHODS = set(
    [
        "capitalize",
        "count",
        "endswith",
        "find",
        "get",
        "index",
        "isalnum",
        "isalpha",
        "isdigit",
        "islower",
        "isspace",
        "isupper",
        "items",
        "join",
        "keys",
        "lower",
        "lstrip",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
        "values",
    ]
)


class ChatTemplate:
    """A compiled chat template. Raises: InvalidRequest if it is not valid Jinja or uses a construct that is not allowed."""

    def __init__(self, text: str) -> None:
        TEMPLATE_CHARACTERS.check(len(text), "the checkpoint's chat template")
        with _translated():
            self._template = _Environment().from_string(text)

    def render(self, **values: Any) -> str:
        """Raises: InvalidRequest if the template rejects the values or exceeds its budget."""
        with _translated():
            token = BUDGET.set(Budget())
            try:
                return "".join(self._template.generate(**values))
            finally:
                BUDGET.reset(token)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn whatever a template raises into InvalidRequest."""
    try:
        yield
    except InvalidRequest:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InvalidRequest(f"the checkpoint's chat template rejects the conversation: {reason}") from error


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "%"})

    def __init__(self) -> None:
        # Constant folding is off: it would run before there is a budget.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], optimized=False, cache_size=0
        )
        self._callables = (self.globals["range"], Namespace, dict, _raise_exception)
        self.globals = {"range": self._callables[0], "namespace": Namespace, "dict": dict}
        self.globals["raise_exception"] = _raise_exception
        filters: dict[str, Any] = dict(self.filters)
        self.filters = {name: guard(name, run, name in _FILTERS) for name, run in filters.items()}
        self.filters |= {"_loop": charged_loop, "_charged": charged, "_string": string, "_text": text}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: guard(name, run, True) for name, run in tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if sum(1 for _ in _descendants(tree)) > _MOST_NODES:
            raise SecurityError(f"it has more than {_MOST_NODES} parts")
        for node in _descendants(tree):
            if isinstance(node, _REFUSED) or (isinstance(node, nodes.For) and node.recursive):
                raise SecurityError(f"{type(node).__name__} in line {node.lineno} is not allowed in a chat template")
        self._macro_cost = 1 + sum(1 for _ in _descendants(tree)) // 16
        _Rewrite().visit(tree)
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        known = isinstance(owner, (str, list, dict)) and name in _METHODS
        if isinstance(__obj, Macro):
            BUDGET.get().spend(__self._macro_cost)
        elif not (
            known
            or any(__obj is allowed for allowed in __self._callables)
            or (isinstance(owner, LoopContext) and name == "cycle")
        ):
            raise SecurityError(f"it calls {name or type(__obj).__name__}, which is not allowed in a chat template")
        given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # Jinja's own
        args = checked_arguments(name, (owner, *args), given, joined=1)[1:]
        return charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and not isinstance(left, (int, float)):
            raise SecurityError("% on text is not allowed in a chat template")
        for operand, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(operand, (str, list, tuple)) and isinstance(other, int):
                check_size(len(operand) * other)
            if isinstance(operand, int) and operand.bit_length() > _NUMBER_BITS:
                raise Exceeded(f"it uses integers of more than {_NUMBER_BITS} bits")
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            check_size(len(left) + len(right))
        return charged(super().call_binop(context, operator, left, right))


class _Rewrite(NodeTransformer):
    """Wraps everything that repeats or grows in a filter that spends from the budget."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        size = sum(1 for _ in _descendants(node)) if isinstance(node, nodes.For) else 0  # before the rewrite adds nodes
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.Output):
            texts = [
                nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part
                for part in node.nodes
            ]
            node.nodes = [_filtered(part, "_text") for part in texts]
        elif isinstance(node, nodes.For):
            node.iter = _filtered(node.iter, "_loop", nodes.Const(1 + size // 16))
        elif isinstance(node, nodes.Compare):
            node.expr = _filtered(node.expr, "_charged")
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_charged")
        elif isinstance(node, nodes.Concat):
            parts = [_filtered(part, "_string") for part in node.nodes]
            return functools.reduce(lambda left, right: nodes.Add(left, right, lineno=node.lineno), parts)
        elif (
            isinstance(node, (nodes.List, nodes.Dict))
            or (isinstance(node, nodes.Tuple) and node.ctx == "load")
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))
        ):
            return _filtered(node, "_charged")
        return node


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _descendants(node: nodes.Node) -> Iterable[nodes.Node]:
    stack = [node]
    while stack:
        child = stack.pop()
        yield child
        stack.extend(child.iter_child_nodes())


def _raise_exception(message: object) -> None:
    raise InvalidRequest(f"the checkpoint's chat template rejects the conversation: {string(message)[:1000]}")
