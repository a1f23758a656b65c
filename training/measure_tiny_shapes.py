"""Measures a tiny checkpoint on its held-out sets and writes the numbers into its model card.

    .venv/bin/python training/measure_tiny_shapes.py [tiny-shapes | tiny-shapes-av]

Each measurement is a `vl2 eval` that can also be run separately: through a running server, with the frames in another order or
without audio; and in process, to compare the answers one by one.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_server.supervisor import ServerOptions, TritonServer

TREE = Path(__file__).parents[1]
CHECKPOINTS = TREE / "training/checkpoints"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ORDER_COLUMN = "needs the order of frames"
TRUE = "right"  # column of the unchanged media


@dataclass(frozen=True)
class HeldOutSet:
    """A held-out set, and the changes of its media to measure: column -> options of `vl2 eval`."""

    folder: str  # below benchmarks/
    changes: dict[str, tuple[str, ...]]


ORDERS: dict[str, tuple[str, ...]] = {
    "frames shuffled": ("--order", "shuffled", "--num-frames", "8"),
    "frames reversed": ("--order", "reversed", "--num-frames", "8"),
}
PLANS = {
    "tiny-shapes": (HeldOutSet("shapes", ORDERS),),
    "tiny-shapes-av": (HeldOutSet("sounds", {"without the sound": ("--without-audio",)}), HeldOutSet("shapes", ORDERS)),
}


def run(*words: object) -> None:
    command = [sys.executable, "-m", "videollama_client", *map(str, words)]
    print("$ vl2", *map(str, words), flush=True)
    subprocess.run(command, check=True)


def measure(build: Path, folder: str, name: str, *words: object) -> dict[str, Any]:
    """Run `vl2 eval` from scratch. Returns: the content of its result.json."""
    out = build / "eval" / f"{folder} {name}".replace(" ", "-")
    for path in out.glob("*.json*"):
        path.unlink()
    run("eval", "shapes", TREE / "benchmarks" / folder, "--out", out, *words)
    return json.loads((out / "result.json").read_text("utf-8"))


def main(name: str = "tiny-shapes") -> None:
    checkpoint, build = CHECKPOINTS / name, TREE / "build" / name
    run("convert", checkpoint, "--out", build)
    content: dict[str, Any] = {"summaries": {}, "items": 0, "equal answers in process and served": 0}
    with TritonServer(build, ServerOptions(grpc_port=0)) as server:
        url = ("--url", f"{server.options.host}:{server.grpc_port}")
        for plan in PLANS[name]:
            results = {TRUE: measure(build, plan.folder, TRUE, *url)}
            for column, words in plan.changes.items():
                results[column] = measure(build, plan.folder, column, *url, *words)
            local = measure(build, plan.folder, "in process", "--checkpoint", checkpoint)
            content["summaries"][plan.folder] = {column: result["summary"] for column, result in results.items()}
            expected = {item["name"]: item["prediction"] for item in local["items"]}
            served = {item["name"]: item["prediction"] for item in results[TRUE]["items"]}
            content["items"] += len(served)
            content["equal answers in process and served"] += sum(served[name] == expected[name] for name in served)
    (checkpoint / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    card = checkpoint / "README.md"
    text = card.read_text("utf-8")
    table = f"{BEGIN}\n{make_table(content)}\n{END}"
    card.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: table, text, flags=re.DOTALL), "utf-8")
    print(make_table(content))


def make_table(content: dict[str, Any]) -> str:
    """The card's tables, one per held-out set; a test compares them with results.json."""
    lines = []
    for folder, summaries in content["summaries"].items():
        lines += [f"Of `benchmarks/{folder}`:", ""]
        lines += [f"| questions | number | {' | '.join(summaries)} |", f"|---|---|{'---|' * len(summaries)}"]
        rows = [("all", "overall", "all")]
        rows += [(f"topic {value}", "topic", value) for value in summaries[TRUE]["topic"]]
        rows += [(f"form {value}", "form", value) for value in summaries[TRUE]["form"]]
        rows += [
            ("order of frames matters", ORDER_COLUMN, "yes"),
            ("order of frames does not matter", ORDER_COLUMN, "no"),
        ]
        for title, column, value in rows:
            numbers = summaries[TRUE][column].get(value)
            if numbers is not None:
                cells = (_cell(summary[column].get(value)) for summary in summaries.values())
                lines.append(f"| {title} | {numbers['items']} | {' | '.join(cells)} |")
        lines.append("")
    equal, items = content["equal answers in process and served"], content["items"]
    return "\n".join([*lines, f"Answers in process and through the server: {equal} of {items} equal, word for word."])


def _cell(numbers: dict[str, Any] | None) -> str:
    return "" if numbers is None else f"{numbers['accuracy']:.1f} %"


if __name__ == "__main__":
    main(*sys.argv[1:])
