"""Prompts that share a prefix with an earlier one are computed from where they differ, and answered as if they came alone."""

import numpy as np
import pytest

from counting_runner import VOCAB, CountingRunner, contrasted, expected, expected_contrast, request, run, scheduler_on
from videollama_core.generation.prefixes import MOST_KEPT, KeptPrefixes, positions_of

MEDIA = list(range(VOCAB, VOCAB + 40))  # positions of media rows
ROWS = np.zeros((40, 4), np.float32)


def hashes(prompt: list[int], of_media: int) -> np.ndarray:
    return np.array([of_media if token >= VOCAB else 0 for token in prompt], np.uint64)


def ask(scheduler, name: str, prompt: list[int], of_media: int | None = None, media=ROWS, **more):
    more |= {} if of_media is None else {"media_hashes": hashes(prompt, of_media)}
    made, listener = request(name, prompt, media=media, **more)
    scheduler.submit(made)
    return listener


def wide() -> CountingRunner:
    return CountingRunner(max_length=128)


def test_a_second_question_about_the_same_media_computes_only_what_differs():
    scheduler = scheduler_on(wide(), prefill_chunk=16)
    first, second = [1, 2, *MEDIA, 7, 8], [1, 2, *MEDIA, 9, 10, 11]
    one = ask(scheduler, "first", first, 5)
    run(scheduler)
    before = sum(scheduler.steps.runner.chunks)
    listener = ask(scheduler, "second", second, 5)
    run(scheduler)
    assert sum(scheduler.steps.runner.chunks) - before == 3
    assert listener.ids == expected(second, 8)
    assert one.cached_tokens == [0] * 8 and listener.cached_tokens == [42] + [0] * 7
    counters = scheduler.counters
    assert (counters.prefix_hits, counters.reused_positions, counters.prompt_positions) == (1, 42, 44 + 3)


def test_a_repeated_question_computes_only_its_last_position():
    scheduler = scheduler_on(wide())
    prompt = [1, *MEDIA, 7]
    for name in "abc":
        listener = ask(scheduler, name, prompt, 5)
        run(scheduler)
        assert listener.ids == expected(prompt, 8)
    assert scheduler.steps.runner.chunks == [42, 1, 1]


def test_of_simultaneous_questions_only_the_first_computes_the_media():
    scheduler = scheduler_on(CountingRunner(num_slots=8, max_length=128), prefill_chunk=16)
    prompts = [[1, *MEDIA, number, 3] for number in range(12)]
    listeners = [ask(scheduler, str(number), prompt, 5) for number, prompt in enumerate(prompts)]
    run(scheduler)
    assert [listener.ids for listener in listeners] == [expected(prompt, 8) for prompt in prompts]
    assert sum(scheduler.steps.runner.chunks) == 43 + 11 * 2


@pytest.mark.parametrize("named", [True, False])
def test_other_media_at_the_same_positions_are_computed(named):
    """Compared by the hash that came with them, or by their rows where there is none."""
    scheduler = scheduler_on(wide())
    prompt = [1, *MEDIA, 7]
    for number in range(3):
        ask(scheduler, str(number), prompt, 5 + number if named else None, media=ROWS + number)
        run(scheduler)
    assert scheduler.steps.runner.chunks == [42, 42, 42]
    ask(scheduler, "known", prompt, 6 if named else None, media=ROWS + 1)
    run(scheduler)
    assert scheduler.steps.runner.chunks[3:] == [1]


def test_masked_and_unmasked_padding_share_no_prefix():
    scheduler = scheduler_on(wide())
    prompt = [3] * 40
    for name, pad_id in (("shown", None), ("hidden", 3), ("hidden too", 3)):
        ask(scheduler, name, prompt, pad_id=pad_id)
        run(scheduler)
    assert scheduler.steps.runner.chunks == [40, 40, 1]


def test_a_contrast_reuses_each_of_its_sequences():
    scheduler = scheduler_on(wide())
    prompt = (1, *MEDIA, 3)
    for name, cached in (("first", 0), ("second", 41)):  # of one sequence: the other's are no tokens of the caller's
        made, listener = contrasted(name, 6, prompt=prompt)
        made.media = np.zeros((80, 4), np.float32)
        scheduler.submit(made)
        run(scheduler)
        ids, wanted = listener.ids, expected_contrast(6, prompt, rows=40)
        assert ids == wanted and listener.cached_tokens[0] == cached
    assert scheduler.steps.runner.chunks == [42, 42, 1, 1]


def test_a_request_stopped_halfway_leaves_a_valid_cache():
    scheduler = scheduler_on(wide(), prefill_chunk=8)
    prompt = [1, *MEDIA, 7]
    ask(scheduler, "gone", prompt, 5)
    scheduler.iterate()
    scheduler.stop("gone")
    listener = ask(scheduler, "next", prompt, 5)
    run(scheduler)
    assert listener.ids == expected(prompt, 8) and scheduler.counters.prefix_hits == 0


def positions(first: int, length: int) -> np.ndarray:
    return positions_of(np.arange(first, first + length), 10**6, None, None, None)


def test_memory_is_bounded_and_the_least_recently_used_prefix_is_evicted():
    kept = KeptPrefixes(3000)
    values = np.zeros(1000, np.uint8)
    for number in range(3):
        kept.keep(positions(1000 * number, 40), lambda: values)
    assert kept.find(positions(0, 60))[1] == 40  # used: now the second is the oldest
    kept.keep(positions(5000, 40), lambda: values)
    assert kept.bytes == 3000
    assert [kept.find(positions(1000 * number, 41))[1] for number in (0, 1, 2, 5)] == [40, 0, 40, 40]
    kept.keep(positions(9000, 40), lambda: np.zeros(3001, np.uint8))
    assert kept.bytes == 3000 and kept.find(positions(9000, 41))[1] == 0


def test_a_longer_conversation_replaces_its_own_prefix():
    kept = KeptPrefixes(10**9)
    for length in range(40, 140, 2):
        kept.keep(positions(0, length), lambda: np.zeros(10, np.uint8))
    assert kept.bytes == 10 and kept.find(positions(0, 500))[1] == 138
    for number in range(2 * MOST_KEPT):
        kept.keep(positions(1000 * number, 40), lambda: np.zeros(10, np.uint8))
    assert kept.bytes == 10 * MOST_KEPT


def test_nothing_is_read_from_an_empty_cache():
    for kept, length in ((KeptPrefixes(0), 100), (KeptPrefixes(10**9), 8)):
        kept.keep(positions(0, length), lambda: pytest.fail("read"))
        assert kept.find(positions(0, length)) == (None, 0)
