"""Recorded results: what a script writes, and the page generated from it."""

import json

import pytest

from videollama_benchmarks import performance_page, recording
from videollama_benchmarks.recording import Aim, Table


def test_a_result_records_where_it_was_measured(tmp_path, capsys):
    table = Table("seconds", ("clip", "ours", "limit"), [("a | b", 0.12345, None), ("c", 12345.6, 3)])
    aims = [Aim("ours / limit", 1.2, 1.25), Aim("answers", 3.0, 4.0, at_least=True)]
    path = recording.record("decode", "Decoding", [table], aims, ["Two runs."], {"raw": [1]}, out=tmp_path)
    result = json.loads(path.read_text("utf-8"))
    assert result["machine"]["cores"] >= 1 and result["machine"]["versions"]["numpy"]
    assert [aim["holds"] for aim in result["aims"]] == [True, False] and result["samples"] == {"raw": [1]}
    page = performance_page.render(tmp_path)
    for line in (
        "| a \\| b | 0.123 |  |",
        "| c | 12,346 | 3 |",
        "| ours / limit | 1.2 | <= 1.25 | yes |",
        "| answers | 3 | >= 4 | **no** |",
    ):
        assert line in page
    assert "Two runs." in page and page.strip() in capsys.readouterr().out


def test_variants_are_measured_in_turn():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    taken = recording.in_turn(variants, 3)
    assert "".join(order) == "abcbcacab"
    assert all(len(taken[name][kind]) == 3 for name in "abc" for kind in ("wall", "cpu"))
    assert recording.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0, "runs": 3}


def test_only_the_text_between_the_marks_is_generated():
    page = "words\n<!-- a part -->\nold\n<!-- end of a part -->\nmore\n"
    made = performance_page.put_into(page, "a part", "new\n")
    assert "old" not in made and made.startswith("words\n") and made.endswith("\nmore\n") and "new" in made
    assert performance_page.put_into(made, "a part", "new\n") == made
    with pytest.raises(ValueError, match="another part"):
        performance_page.put_into(made, "another part", "new")
