"""Prompts of an exact length that no cache has seen."""

from __future__ import annotations

import pytest

from chimera.measure.prompts import PromptMaker


async def two_a_word(text: str) -> int:
    """A tokenizer that makes two tokens of every fifth letter count's word, and one that begins the text."""
    return 1 + sum(2 if len(word) % 5 == 0 else 1 for word in text.split())


async def no_tokenizer(_: str) -> None:
    return None


@pytest.mark.parametrize("wanted", [4, 64, 200, 400, 1500])
async def test_a_prompt_has_the_wanted_tokens(wanted: int) -> None:
    prompt = await PromptMaker(7, wanted, two_a_word).make(1, 1)
    assert prompt.tokens is not None
    assert abs(prompt.tokens - wanted) <= 1
    assert prompt.tokens == await two_a_word(prompt.text)


async def test_every_request_begins_differently_and_the_same_one_is_the_same_again() -> None:
    maker = PromptMaker(7, 64, two_a_word)
    texts = [(await maker.make(round_, request)).text for round_ in range(5) for request in range(5)]
    assert len({text.split()[0] for text in texts}) == len(texts)
    assert len({text[:6] for text in texts}) == len(texts)  # no prefix that a cache could use
    assert (await PromptMaker(7, 64, two_a_word).make(3, 2)).text == texts[3 * 5 + 2]
    assert (await PromptMaker(8, 64, two_a_word).make(3, 2)).text != texts[3 * 5 + 2]


async def test_without_a_tokenizer_the_length_is_learned_from_the_answers() -> None:
    maker = PromptMaker(7, 300, no_tokenizer)
    for request in range(6):
        prompt = await maker.make(1, request)
        assert prompt.tokens is None
        counted = 12 + round(prompt.words * 1.3)
        maker.learn(prompt, counted)
    assert abs(counted - 300) <= 15


async def test_a_count_below_the_words_was_a_truncation_and_teaches_nothing() -> None:
    maker = PromptMaker(7, 300, no_tokenizer)
    first = await maker.make(1, 1)
    maker.learn(first, 100)
    assert (await maker.make(1, 2)).words == first.words
