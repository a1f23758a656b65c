"""The asyncio client's stream: who cancels it decides what its reader gets."""

import asyncio
from types import SimpleNamespace

from videollama_client.client_async import AsyncAnswerStream
from videollama_core.protocol.errors import StageFailed, StageRestarting

SECONDS = 10


class SilentCall:
    def __init__(self):
        self._message = asyncio.get_running_loop().create_future()

    async def read(self):
        return await self._message

    def cancel(self):
        self._message.cancel()


def read_while(act):
    """Read from a silent call, and `act` with the stream and the reading task meanwhile."""

    async def read():
        client = SimpleNamespace(address="x:1", _restart_seconds=SECONDS, _active={}, _forget=lambda _: None)
        stream = AsyncAnswerStream(client, "1", SilentCall, None, ())
        reading = asyncio.ensure_future(stream.answer())
        await asyncio.sleep(0)
        act(stream, reading)
        await asyncio.wait_for(asyncio.wait({reading}), SECONDS)
        return reading

    return asyncio.run(read())


def lose(stream, error):
    stream._lost = error
    stream._call.cancel()


def test_a_lost_server_is_the_readers_error():
    reading = read_while(lambda stream, _: lose(stream, StageFailed("gone")))
    assert isinstance(reading.exception(), StageFailed)


def test_a_reader_cancelled_as_its_server_is_lost_does_not_send_again():
    def act(stream, reading):
        lose(stream, StageRestarting("gone"))
        reading.cancel()

    assert read_while(act).cancelled()
