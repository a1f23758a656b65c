"""Three real servers behind our gateway: under load, one is killed, one drained, and one added."""

import base64
import re

import httpx2
import openai
import pytest

from conftest import MEDIA
from service.fleet import AskFailed, Fleet, Load, live_through_changes
from service.servers import gateway_of
from videollama_client.media import digest_of
from videollama_gateway.servers import Server, Servers

CLIP = (MEDIA / "plain_96x64.mp4").read_bytes()


@pytest.fixture
def fleet(bundle_of, tmp_path):
    started = Fleet(bundle_of("qwen2-clip-8f"), tmp_path)
    yield started
    started.close()


@pytest.mark.timeout(600)
def test_servers_behind_the_gateway_can_die_drain_and_join(fleet, tmp_path):
    names = tmp_path / "servers.txt"
    names.write_text("".join(f"{server.grpc}\n" for server in fleet.servers))
    places = Servers({"videollama2": [Server(server.grpc, None, ready=True) for server in fleet.servers]})
    with gateway_of("--servers-file", names) as address:
        with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:

            def ask(media: bytes, text: str) -> tuple[bool, str]:
                where = places.in_order("videollama2", digest_of([media]))[0].address  # of the three
                url = f"data:video/mp4;base64,{base64.b64encode(media).decode()}"
                parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
                try:
                    answer = client.chat.completions.create(
                        model="videollama2", messages=[{"role": "user", "content": parts}], max_tokens=40, temperature=0
                    )
                except openai.OpenAIError as error:
                    raise AskFailed(error, where) from error
                return not answer.vl2["seconds"]["encoder"], where

            def added(server) -> None:
                names.write_text(f"{fleet.servers[2].grpc}\n{server.grpc}\n")

            live_through_changes(Load(CLIP, ask), fleet, fleet.servers[0].grpc, added)
            assert fleet.servers[3].metric("vl2_mm_cache_queries_total") > 0  # it had its share
        rejected = re.findall(
            r'^vl2_rejected_total{.*reason="(\w+)"', httpx2.get(f"http://{address}/metrics").text, re.M
        )
        assert set(rejected) <= {"ServerUnreachable", "StageFailed", "StageRestarting"}
