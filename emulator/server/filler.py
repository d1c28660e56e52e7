"""What the emulated model says: words without a meaning, always the same ones to the same question.

An answer follows from the server's seed, the request's `seed`, the prompt and the choice's number alone, whatever the
temperature. Its length too: log-normal around a median, unless `ignore_eos` is set, a stop string occurs or the limit
comes first. Every word is one token, and a text of n words is n tokens again when it is tokenized.
"""

import hashlib
import random
import re
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from emulator.server.tokens import EOS, encode

MEDIAN_TOKENS = 256  # of an answer that nothing cuts short
SPREAD = 0.7  # sigma of its logarithm: nine of ten answers have between 80 and 810 tokens

WORDS = tuple(
    re.findall(
        " [a-z]+",
        " about above after again along among apple back basin beach below birch blank board boat bold book both branch"
        " brave bread brick bridge bright brook brown build calm candle canvas carry case chalk change chart city clay"
        " clear cliff cloud coast coin cold copper corner cotton cover craft creek cross dance dawn deep delta desk dew"
        " door down dream drift dune early earth east echo edge elder ember even every faint fair fall far field finch"
        " fire first flat flint flow fog fold forest fresh frost garden gate gentle glass gold grain grass gravel green"
        " grove harbor",
    )
)
WORD_TOKENS = tuple(encode("".join(WORDS)))


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer before its limit; nothing does in its first `min_tokens` tokens.

    A stop string is cut off the answer unless `keep` is set.
    """

    strings: Sequence[str] = ()
    tokens: Collection[int] = ()
    keep: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0


class Answer:
    """The text of one answer, handed out as its tokens are produced.

    `tokens` is how many the engine has to produce, the one that ends the text included (it says nothing);
    `finish_reason` is "stop" or "length", and `stop_reason` the string or token that stopped it.
    """

    __slots__ = ("_at", "_ends", "_given", "_held", "_said", "_text", "finish_reason", "stop_reason", "tokens")

    def __init__(self, seed: int, limit: int, stops: Stops) -> None:
        rng = random.Random(seed)
        self._at = rng.randrange(len(WORDS))
        natural = max(1, round(rng.lognormvariate(0, SPREAD) * MEDIAN_TOKENS))
        natural = max(natural, stops.min_tokens + 1)
        self.stop_reason: str | int | None = None
        self._given = 0  # words; characters where there are stop strings
        self._text: str | None = None  # all of it, where there are stop strings
        self._said: list[int] = []  # its characters after each token
        self._held = 0  # characters that might begin a stop string
        if natural <= limit and not stops.ignore_eos:
            self.tokens, self.finish_reason, self._ends = natural, "stop", True
        else:
            self.tokens, self.finish_reason, self._ends = limit, "length", False
        if stops.tokens:
            self._stop_at_token(stops)
        if stops.strings:
            self._stop_at_string(stops)

    def take(self, produced: int) -> str:
        """The text that is new now that `produced` tokens are there. What might begin a stop string is held back."""
        done = produced >= self.tokens
        if self._text is None:
            text = self._words(self._given, produced - (done and self._ends))
            self._given = produced
            return text
        upto = len(self._text) if done else self._said[produced - 1] - self._held
        text = self._text[self._given : max(upto, self._given)]
        self._given = max(upto, self._given)
        return text

    def token_ids(self) -> list[int]:
        """What the engine produces."""
        said = self.tokens - self._ends
        ids = [WORD_TOKENS[(self._at + place) % len(WORDS)] for place in range(said)]
        if self._ends:
            ids.append(self.stop_reason if isinstance(self.stop_reason, int) else EOS)
        return ids

    def _words(self, first: int, last: int) -> str:
        count, start = max(0, last - first), (self._at + first) % len(WORDS)
        if count == 1:
            return WORDS[start]
        return "".join(WORDS[(start + n) % len(WORDS)] for n in range(count))

    def _stop_at_token(self, stops: Stops) -> None:
        for place in range(stops.min_tokens, self.tokens):
            token = WORD_TOKENS[(self._at + place) % len(WORDS)]
            if token in stops.tokens:
                self.tokens, self.finish_reason, self._ends = place + 1, "stop", not stops.keep
                self.stop_reason = token
                return

    def _stop_at_string(self, stops: Stops) -> None:
        words = self.tokens - self._ends
        text = self._text = self._words(0, words)
        self._held = 0 if stops.keep else max(len(string) for string in stops.strings) - 1
        end = 0
        for place in range(words):
            begin, end = end, end + len(WORDS[(self._at + place) % len(WORDS)])
            self._said.append(end)
            if place < stops.min_tokens:
                continue
            for string in stops.strings:  # the first that is named wins where one token completes several
                found = text.find(string, max(0, begin - len(string) + 1), end)
                if found >= 0:
                    self._text = text[: found + len(string) if stops.keep else found]
                    self.tokens, self.finish_reason, self._ends = place + 1, "stop", False
                    self.stop_reason = string
                    return


def seed_of(server_seed: int, request_seed: int | None, prompt: Sequence[int], choice: int) -> int:
    """The seed of one choice's answer."""
    digest = hashlib.blake2b(array("q", [server_seed, request_seed or 0, choice]).tobytes(), digest_size=8)
    digest.update(array("q", prompt).tobytes())
    return int.from_bytes(digest.digest(), "little")
