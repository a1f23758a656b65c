"""Tokenizers and chat templates of hostile checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import edit_json
from security.hostile_checkpoints import SHARDED, Hostile, write


def tokenizer(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")

    return changed


def tokens(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **changes)


def generation(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "generation_config.json", **changes)


def slow(data: bytes) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(data)

    return changed


def added(index: int) -> Callable[[dict], None]:
    token = {
        "content": "<x>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return lambda content: content["added_tokens"].append({"id": index, **token})


def strange_piece(content: dict) -> None:
    """A piece of characters that stand for no bytes."""
    vocabulary = content["model"]["vocab"]
    vocabulary["\u4e2d"] = len(vocabulary)
    content["added_tokens"] = []


def larger(content: dict) -> None:
    content["model"]["vocab"]["beyond"] = 5000


def endless(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    (folder / "generation_config.json").write_text("{}")


_FOR = "{% for a in range(9999) %}"
_END = "{% endfor %}"
_GROWING = "{% set ns = namespace(x=['x']) %}" + _FOR
TEMPLATES = {
    "loops for ever": (_FOR * 6 + _END * 6, "steps"),
    "prints for ever": (_FOR * 6 + "text" + _END * 6, "steps|characters"),
    "a macro calls itself twice": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "a macro calls itself 2^60 times": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "steps",
    ),
    "a recursive loop": ("{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "not allowed"),
    "builds 5 GB by *": ("{{ 'x' * 5000000000 }}", "characters"),
    "builds 5 GB by +": (_GROWING + "{% set ns.x = ns.x[0] + ns.x[0] %}{% set ns.x = [ns.x] %}" + _END, "characters"),
    "builds 5 GB by ~": (_GROWING + "{% set ns.x = [ns.x[0] ~ ns.x[0]] %}" + _END, "characters"),
    "builds 5 GB in a block": (
        _GROWING + "{% set y %}{{ ns.x[0] }}{{ ns.x[0] }}{% endset %}{% set ns.x = [y] %}" + _END,
        "characters",
    ),
    "builds 5 GB by format": ("{{ '{:5000000000}'.format(1) }}", "not allowed"),
    "builds 5 GB by %": ("{{ '%5000000000d' % 1 }}", "not allowed"),
    "builds 5 GB by center": ("{{ 'x'.center(5000000000) }}{{ 'x'|center(5000000000) }}", "not allowed"),
    "builds 1 TB by replace": ("{% set x = 'x' * 1000000 %}{{ x.replace('x', x) }}", "characters"),
    "builds 1 TB by join": ("{% set x = 'x' * 1000000 %}{{ x|join(x) }}", "steps"),
    "a list of itself twice, 64 times": (_GROWING + "{% set ns.x = [ns.x, ns.x] %}" + _END, "steps"),
    "a number of 10^10 digits": ("{{ 10 ** 10 ** 10 }}", "not allowed"),
    "counts beyond": (_GROWING + "{% set ns.y = (ns.y or 3) * (ns.y or 3) %}" + _END, "bits"),
    "does not parse": ("{% for ", "rejects the conversation"),
    "parses for ever": ("{{ " + "(" * 20_000 + " }}", "rejects the conversation"),
    "has 70,000 characters": ("x" * 70_000, "template_characters"),
    "raises": ("{{ raise_exception('no') }}", "rejects the conversation: no"),
    "divides by 0": ("{{ 1 / 0 }}", "division"),
    "reads attributes": ("{{ messages.__class__.__mro__ }}", "unsafe"),
    "reads attributes by a filter": ("{{ messages|attr('__class__') }}", "not allowed"),
    "includes a file": ("{% include '/etc/passwd' %}", "not allowed"),
    "prints no text": ("{{ messages }}", "not text"),
    "is empty of the question": ("{{ 'hello' }}", "omits the question"),
}
CHAT = tuple(
    Hostile(f"template {name}", tokens(chat_template=text), reason) for name, (text, reason) in TEMPLATES.items()
)
TOKENIZERS = (
    Hostile("tokenizer.json is empty", write("tokenizer.json", ""), "not a tokenizer"),
    Hostile("tokenizer.json is {}", write("tokenizer.json", "{}"), "not a tokenizer"),
    Hostile("tokenizer.json is nested 100,000 deep", write("tokenizer.json", "[" * 100_000), "not a tokenizer"),
    Hostile("tokenizer.json has 20 MB", write("tokenizer.json", b" " * 20_000_000), "json_bytes"),
    Hostile("tokenizer.json: unknown model", tokenizer(lambda c: c["model"].update(type="X")), "not a tokenizer"),
    Hostile(
        "tokenizer.json: a vocabulary of text", tokenizer(lambda c: c["model"].update(vocab="X")), "not a tokenizer"
    ),
    Hostile("tokenizer.json: no decoder", tokenizer(lambda c: c.update(decoder=None)), "expected ByteLevel"),
    Hostile("tokenizer.json: a piece that is no bytes", tokenizer(strange_piece), "maps to no bytes", SHARDED),
    Hostile("tokenizer.json: ids beyond the embedding", tokenizer(larger), "vocabulary has 1000"),
    Hostile("tokenizer.json: a special id beyond the embedding", tokenizer(added(1000)), "vocabulary has 1000"),
    Hostile("tokenizer_config.json is no JSON", write("tokenizer_config.json", "{"), "as JSON"),
    Hostile("tokenizer_config.json is a list", write("tokenizer_config.json", "[]"), "JSON object"),
    Hostile(
        "tokenizer_config.json is missing", lambda f: (f / "tokenizer_config.json").unlink(), "no tokenizer_config"
    ),
    Hostile("eos_token is a number", tokens(eos_token=7), "eos_token of"),
    Hostile("bos_token is an object of numbers", tokens(bos_token={"content": 7}), "bos_token of"),
    Hostile("chat_template is a number", tokens(chat_template=7), "chat_template of"),
    Hostile("chat_template is missing", tokens(chat_template=None), "no chat template"),
    Hostile("chat_template.jinja is no UTF-8", write("chat_template.jinja", b"\xff"), "UTF-8"),
    Hostile("tokenizer.model is damaged", slow(b"\x0a\xff\xff\xff\x7f"), "none can be made"),
    Hostile("eos_token_id is 10^6", generation(eos_token_id=10**6), "expected at least one, all below 1000"),
    Hostile("eos_token_id is -1", generation(eos_token_id=-1), "expected integers"),
    Hostile("eos_token_id is text", generation(eos_token_id=["2"]), "expected integers"),
    Hostile("top_k is half", generation(top_k=0.5), "expected integers"),
    Hostile("repetition_penalty is 0", generation(repetition_penalty=0), "repetition_penalty is 0"),
    Hostile("repetition_penalty is text", generation(repetition_penalty="1"), "repetition_penalty is '1'"),
    Hostile("nothing ends an answer", endless, "has the end ids"),
)
PROMPTS = (*TOKENIZERS, *CHAT)


def growing(content: dict) -> None:
    """Every w becomes 10^12 of them."""
    step = {"type": "Replace", "pattern": {"String": "w"}, "content": "w" * 1000}
    content["normalizer"] = {"type": "Sequence", "normalizers": [step] * 4}


# What only the limits of the process end.
LIMITED = (
    Hostile("tokenizer.json: a normalizer that makes 1 TB", tokenizer(growing), "needs more than 8 s or 768 MB"),
)
