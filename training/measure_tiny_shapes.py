"""Measure tiny-shapes on its held-out clips and write the numbers into its model card.

    .venv/bin/python training/measure_tiny_shapes.py

Each measurement is a `vl2 eval` that anyone can run alone: through a running server with the frames in their true order,
shuffled and reversed; and in process, to compare the answers one by one.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from videollama_core.triton_server import ServerOptions, TritonServer

TREE = Path(__file__).parents[1]
CHECKPOINT = TREE / "training/checkpoints/tiny-shapes"
HELD_OUT = TREE / "benchmarks/shapes"
BUILD = TREE / "build/tiny-shapes"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ORDER_COLUMN = "needs the order of frames"


def run(*words: object) -> None:
    command = [sys.executable, "-m", "videollama_client", *map(str, words)]
    print("$ vl2", *words[:1], *map(str, words[1:]), flush=True)
    subprocess.run(command, check=True)


def measure(name: str, *words: object) -> dict[str, Any]:
    """A `vl2 eval` from the start; returns its result.json."""
    out = BUILD / "eval" / name
    for path in out.glob("*.json*"):
        path.unlink()
    run("eval", "shapes", HELD_OUT, "--out", out, *words)
    return json.loads((out / "result.json").read_text("utf-8"))


def main() -> None:
    run("convert", CHECKPOINT, "--out", BUILD)
    num_frames = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))["num_frames"]
    results = {}
    with TritonServer(BUILD, ServerOptions(grpc_port=0, http_port=0, metrics_port=0)) as server:
        url = f"{server.options.host}:{server.grpc_port}"
        results["true"] = measure("true", "--url", url)
        for order in ("shuffled", "reversed"):
            results[order] = measure(order, "--url", url, "--order", order, "--num-frames", num_frames)
    results["in process"] = measure("in-process", "--checkpoint", CHECKPOINT)
    served, local = (
        {one["name"]: one["prediction"] for one in results[key]["items"]} for key in ("true", "in process")
    )
    equal = sum(served[name] == local[name] for name in served)
    summaries = {key: result["summary"] for key, result in results.items()}
    content = {"summaries": summaries, "items": len(served), "equal answers in process and served": equal}
    (CHECKPOINT / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    card = CHECKPOINT / "README.md"
    text = card.read_text("utf-8")
    table = f"{BEGIN}\n{make_table(content)}\n{END}"
    card.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: table, text, flags=re.DOTALL), "utf-8")
    print(make_table(content))


def make_table(content: dict[str, Any]) -> str:
    """The card's table; a test compares it with results.json."""
    summaries = content["summaries"]
    lines = [
        "| questions | number | right | frames shuffled | frames reversed |",
        "|---|---|---|---|---|",
    ]
    rows = [("all", "overall", "all")]
    rows += [(f"topic {value}", "topic", value) for value in summaries["true"]["topic"]]
    rows += [(f"form {value}", "form", value) for value in summaries["true"]["form"]]
    rows += [("order of frames matters", ORDER_COLUMN, "yes"), ("order of frames does not matter", ORDER_COLUMN, "no")]
    for title, column, value in rows:
        found = [summaries[order][column][value] for order in ("true", "shuffled", "reversed")]
        cells = " | ".join(f"{numbers['accuracy']:.1f} %" for numbers in found)
        lines.append(f"| {title} | {found[0]['items']} | {cells} |")
    equal, items = content["equal answers in process and served"], content["items"]
    lines += ["", f"Answers in process and through the server: {equal} of {items} equal, word for word."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
