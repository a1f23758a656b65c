"""`--engine torch` behind the same stages: the recorded answers over gRPC, many at a time."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from conftest import case, cases, checkpoint, torch_bundle
from service.servers import serving
from service.test_golden_over_grpc import REVERSED, media_of
from videollama_converters.assemble import keep_media_tokens_on_gpu
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.messages import SamplingOptions

VARIANT = "av-qwen2-siglip"


@pytest.fixture(scope="module")
def bundle():
    return torch_bundle(VARIANT)


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with serving(bundle, tmp_path_factory.mktemp("torch") / "server.log", "--expose-stages") as running:
        yield running


@pytest.fixture(scope="module")
def keeping(bundle, tmp_path_factory):
    """The repository of `--media-token-memory gpu`, with the one word changed that asks Triton for a GPU: tables leave
    the encoder by DLPack, which keeps them on their device, and the entry keeps the pixels.
    """
    folder = tmp_path_factory.mktemp("keeping")
    copy = folder / "bundle"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["media_token_memory"] = "gpu"
    keep_media_tokens_on_gpu(copy / "model_repository")
    config = copy / "model_repository/encoder/config.pbtxt"
    stage = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    (group,) = stage.instance_group
    assert (group.kind, group.count, group.gpus) == (group.KIND_GPU, 1, [0])
    group.kind = group.KIND_CPU
    del group.gpus[:]
    config.write_text(text_format.MessageToString(stage))
    for name in manifest["files"]:
        manifest["files"][name]["bytes"] = (copy / name).stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with serving(copy, folder / "server.log", "--expose-stages") as running:
        yield running


@pytest.mark.parametrize("fixture", ["server", "keeping"])
def test_recorded_answers(fixture, request):
    server = request.getfixturevalue(fixture)
    wanted = [case for case in cases(VARIANT) if case.name != REVERSED]

    def ask(case):
        with server.client() as client:
            return client.ask(
                case.facts["instruct"], **media_of(case), **case.segment, max_new_tokens=case.max_new_tokens
            )

    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(ask, wanted))
    assert [answer.output_ids for answer in answers] == [case.facts["output_ids"] for case in wanted]
    assert [answer.text for answer in answers] == [case.facts["text"] for case in wanted]


@pytest.mark.parametrize("running", ["server", "keeping"])
def test_a_contrast(running, request):
    """Noised pixels with the same audio, in slots of their own: the plain pipeline's ids."""
    known, options = case(VARIANT, "video_audio"), {"max_new_tokens": 8, "vcd_alpha": 1.0, "seed": 3}
    kind, files = known.files()
    pipeline = Pipeline(checkpoint(VARIANT))
    wanted = pipeline.answer(known.conversation, kind, files, options=SamplingOptions(**options)).output_ids
    with request.getfixturevalue(running).client() as client:
        answers = [client.ask(known.facts["instruct"], **media_of(known), **options).output_ids for _ in range(2)]
        plain = client.ask(known.facts["instruct"], **media_of(known), max_new_tokens=known.max_new_tokens)
    assert answers == [wanted] * 2 and plain.output_ids == known.facts["output_ids"] and plain.output_ids[:8] != wanted


def test_a_second_question_decodes_nothing(keeping):
    known = case(VARIANT, "video_audio")
    options = media_of(known) | {"max_new_tokens": known.max_new_tokens}
    with keeping.client() as client:
        _, second = (client.ask(known.facts["instruct"], **options) for _ in range(2))
    assert second.output_ids == known.facts["output_ids"] and second.seconds["preprocess"] == 0
    assert second.seconds["encoder"] > 0  # it was asked, and had the table
