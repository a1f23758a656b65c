"""langchain-openai, LiteLLM, AIPerf and lmms-eval through the gateway: the answers are those of gRPC."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from conftest import HELD_OUT, ROOT
from service.servers import gateway_of, serving, vl2

ENVIRONMENTS = Path(os.environ.get("VL2_CLIENTS", ROOT / "build/clients")).absolute()
CLIPS = HELD_OUT / "held_out"
CLIP, QUESTION = CLIPS / "00000.mp4", "How does the red square change?"
BRIEF = "Answer in one short sentence."  # what examples/langchain_chat.py tells the model
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENTS.is_dir(), reason="make test-clients installs them"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    bundle = tmp_path_factory.mktemp("clients") / "bundle"
    subprocess.run(vl2("convert", ROOT / "training/checkpoints/tiny-shapes", "--out", bundle), check=True)
    with serving(bundle, bundle.parent / "server.log") as running:
        running.bundle = bundle
        yield running


@pytest.fixture(scope="module")
def address(server):
    with gateway_of("--server", server.grpc) as gateway:
        yield gateway


def run(name: str, *words: object, by: str = "python", programs: str = "clients") -> str:
    environment = os.environ | {
        "PATH": f"{ENVIRONMENTS / programs / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it looks for prices on the network otherwise
    }
    command = [by, str(ROOT / "examples" / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_langchain(address, server):
    with server.client() as client:
        messages = [{"role": "system", "content": BRIEF}, {"role": "user", "content": QUESTION}]
        expected = client.ask(messages, video=CLIP, max_new_tokens=64).text
    assert run("langchain_chat.py", CLIP, QUESTION, f"http://{address}/v1") == f"{expected}\n"


def test_litellm(address, server):
    with server.client() as client:
        expected = client.ask(QUESTION, video=CLIP, max_new_tokens=64).text
    assert run("litellm_chat.py", CLIP, QUESTION, f"http://{address}/v1") == f"{expected}\n"


def test_aiperf(address, server, tmp_path):
    """Every question is answered with gRPC's tokens, several at once, and latencies are measured."""
    with server.client() as client:
        expected = [client.ask("What happens?", video=clip, max_new_tokens=16) for clip in sorted(CLIPS.glob("*.mp4"))]
    run("aiperf.sh", CLIPS, server.bundle, tmp_path, address, by="sh")
    profile = json.loads((tmp_path / "profile_export_aiperf.json").read_text("utf-8"))
    assert profile["request_count"]["avg"] == 24 and not profile.get("error_request_count", {}).get("avg")
    assert profile["time_to_first_token"]["p50"] > 0
    records = [json.loads(line)["metrics"] for line in (tmp_path / "profile_export.jsonl").read_text().splitlines()]
    counts = {record["output_sequence_length"]["value"] for record in records}
    assert counts <= {answer.usage.completion_tokens for answer in expected}


def test_lmms_eval(address, server, tmp_path):
    """Its samples hold the answers that gRPC gives for the frames it sends, ten from each clip."""
    rows = json.loads((HELD_OUT / "held_out.json").read_text("utf-8"))[:12]
    for row in rows:
        row["video"] = str(HELD_OUT / row["video"])
    (tmp_path / "some.json").write_text(json.dumps(rows))
    words = (tmp_path / "some.json", tmp_path / "out", f"http://{address}/v1")
    run("lmms_eval_run.py", *words, programs="lmms_eval")
    (samples,) = (tmp_path / "out").rglob("*_samples_questions.jsonl")
    logged = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    assert len(logged) == len(rows) and all(one["filtered_resps"][0] for one in logged)
    assert sum(one["exact_match"] for one in logged) > len(rows) / 3  # chance is far below: they are whole sentences
