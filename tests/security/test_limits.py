"""The table of limits: defined in one place, shown in full in docs/security.md."""

import re

import pytest

from security.case_table import PAGE
from videollama_core.protocol.errors import BadSegment, InvalidRequest
from videollama_core.protocol.limits import LIMITS, Limit


def test_the_page_shows_every_limit(pytestconfig):
    rows = [f"| `{limit.name}` | {limit.value:,} | {limit.unit} | {limit.meaning} |" for limit in LIMITS.values()]
    table = "\n".join(["| Limit | At most | Unit | Scope |", "|---|---|---|---|", *rows])
    block, text = f"<!-- limits -->\n{table}\n<!-- end of limits -->", PAGE.read_text("utf-8")
    if pytestconfig.getoption("--write-cases"):
        text = re.sub("<!-- limits -->.*?<!-- end of limits -->", lambda _: block, text, flags=re.DOTALL)
        PAGE.write_text(text, "utf-8")
    assert block in text, "pytest tests/security/test_limits.py --write-cases writes it"


def test_a_limit_is_the_last_accepted_value():
    limit = Limit("apples", 3, "apples", "in a basket")
    limit.check(3, "the basket")
    with pytest.raises(InvalidRequest, match=r"^the basket has 4 apples; the limit is 3 \(apples\)$"):
        limit.check(4, "the basket")
    with pytest.raises(BadSegment):
        limit.check(4, "the basket", BadSegment)
