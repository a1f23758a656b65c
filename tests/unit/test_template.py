"""Chat templates rendered within a budget give what plain Jinja gives."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from conftest import VARIANTS, language_folder
from videollama_core.checkpoint.files import read_json
from videollama_core.protocol.limits import MESSAGES, QUESTION_CHARACTERS
from videollama_core.template import ChatTemplate

# Everything that chat templates in use are made of.
FEATURES = """
{%- if tools %}{{ tools | map(attribute='name') | join(', ') }}{{ tools | tojson(indent=2) }}{% endif %}
{%- set ns = namespace(turns=0, text='') %}
{%- macro head(role, mark='|') %}<{{ mark }}{{ role | upper }}{{ mark }}>{% endmacro %}
{%- for message in ([{'role': 'system', 'content': 'Be short.'}] + messages)[0:] if message.content is string %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- head(message['role']) + '\n' + (message.content | trim) ~ loop.index0 ~ none ~ 1.5 }}
    {%- if loop.last and message.role not in ('system', 'tool') %}{{ message.content.split(' ')[-1].strip() }}{% endif %}
    {%- set kept %}{{ message.content.replace('a', 'bb') | title }}{% endset %}
    {%- set ns.text = ns.text ~ kept ~ (loop.previtem.role if not loop.first else '') %}
    {%- if ns.turns > 90 %}{% break %}{% endif %}
{%- else %}nobody{% endfor %}
{{ ns.text | length }} {{ ns.text[:40] }} {{ ns.turns * 2 - 1 }} {{ ns.turns % 2 == 0 }} {{ undefined_name }}
{{- range(3) | list | last }}{% for key, value in {'a': 1, 'b': [1, 2]}.items() %}{{ key }}{{ value | string }}{% endfor %}
{{- messages | selectattr('role', 'equalto', 'user') | list | length }}{{ '-' * 3 }}{{ bos_token is defined and eos_token }}
{%- with x = messages | first %}{{ x.get('role') }}{{ x.content.startswith(('a', 'h')) }}{% endwith %}
"""


def plain(text):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = lambda message: pytest.fail(message)
    return environment.from_string(text)


def values(turns, text="hallo \n é\U0001f600 a", **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": f"{text} {number} "} for number in range(turns)]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "", "pad_token": ""}
    return {"messages": messages, "add_generation_prompt": turns % 2 == 1, **tokens, **more}


def stored(variant):
    return read_json(language_folder(variant) / "tokenizer_config.json")["chat_template"]


@pytest.mark.parametrize("turns", [1, 2, 21])
@pytest.mark.parametrize("variant", [*VARIANTS, "tiny-shapes"])
def test_a_stored_template_renders_as_in_jinja(variant, turns):
    text, given = stored(variant), values(turns)
    assert ChatTemplate(text).render(**given) == plain(text).render(**given)


@pytest.mark.parametrize("tools", [None, [{"name": "find", "args": [1, {"a": None}]}, {"name": "see"}]])
@pytest.mark.parametrize("turns", [0, 1, 2, 21, 200])
def test_a_template_with_every_feature_renders_as_in_jinja(turns, tools):
    given = values(turns or 1, tools=tools)
    assert ChatTemplate(FEATURES).render(**given) == plain(FEATURES).render(**given)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_largest_conversation_is_within_the_budget(variant):
    size = QUESTION_CHARACTERS.value // MESSAGES.value - 10
    for given in (values(MESSAGES.value - 1, "x" * size), values(1, "x" * (QUESTION_CHARACTERS.value - 10))):
        assert "x" * size in ChatTemplate(stored(variant)).render(**given)
