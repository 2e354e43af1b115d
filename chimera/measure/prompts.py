"""Prompts that no cache has seen: a nonce first, then plain words, to an exact number of tokens.

A nonce at the end would not do: a prefix cache then still reuses nearly the whole prompt. The same (seed, round,
request) always gives the same text, so that all candidates of a round answer the same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

CountTokens = Callable[[str], Awaitable[int | None]]

_VOCABULARY = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education foot boy age policy music market sense "
    "nation plan college interest death experience effect use class control field development role effort rate "
    "heart drug show leader light voice wife police mind price report decision son view relationship town road arm "
    "difference value building action season society tax director position player record paper space ground form "
    "event official matter center couple site project activity star table need court oil situation cost industry "
    "figure street image phone data picture practice piece land product doctor wall worker news test movie north "
    "love step support technology skill letter choice summer film south hospital church subject list window"
)
_WORDS = _VOCABULARY.split()
_NONCE = "bcdfghjkmnpqrstvwxz23456789"
_TRIES = 8
"""Corrections of the length; each costs one call to the server's tokenizer and nearly always two suffice."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what is known of its length."""

    text: str
    words: int
    """A lower bound of its tokens: no tokenizer makes less than one of a word."""
    tokens: int | None
    """Counted by the model's own tokenizer, or None where the server offers none."""


class PromptMaker:
    """Makes prompts of a wanted length for one model."""

    def __init__(self, seed: int, tokens: int, count: CountTokens) -> None:
        self._seed = seed
        self._wanted = tokens
        self._count = count
        self._per_word = 1.0
        self._overhead = 8.0  # nonce and what the model puts in front; replaced by what is counted

    async def make(self, round_: int | str, request: int) -> Prompt:
        """The prompt of one request.

        Exact where the server counts tokens; else by the ratio learned from the answers so far (`learn`).
        """
        chance = random.Random(f"{self._seed}/{round_}/{request}")  # noqa: S311 - a nonce, not a secret
        nonce = "".join(chance.choice(_NONCE) for _ in range(8))
        words = [chance.choice(_WORDS) for _ in range(self._wanted)]
        take = self._words_for(self._wanted)
        best: tuple[int, int] | None = None
        for _ in range(_TRIES):
            text = " ".join([nonce, *words[:take]])
            counted = await self._count(text)
            if counted is None:
                return Prompt(text, take + 1, None)
            if best is None or abs(counted - self._wanted) < abs(best[1] - self._wanted):
                best = (take, counted)
            if counted == self._wanted:
                break
            missing = self._wanted - counted
            step = round(missing * max(1, take) / counted) or (1 if missing > 0 else -1)
            take = max(0, min(self._wanted, take + step))
        assert best is not None
        return Prompt(" ".join([nonce, *words[: best[0]]]), best[0] + 1, best[1])

    def learn(self, prompt: Prompt, counted: int) -> None:
        """Correct the length of later prompts by what the server counted for this one."""
        if prompt.tokens is None and counted >= prompt.words:
            # The share of nonce and template is small and constant; what remains is tokens a word.
            self._overhead = max(0.0, min(self._overhead, counted - (prompt.words - 1)))
            self._per_word = max(1.0, (counted - self._overhead) / max(1, prompt.words - 1))

    def _words_for(self, tokens: int) -> int:
        return max(0, min(tokens, round((tokens - self._overhead) / self._per_word)))
