"""How long steps take on this machine, learned from those that ran. Plain Python: sizes, seconds.

Nothing is predicted before it was measured, and what was measured long ago is forgotten: a wrong
figure that keeps work away would otherwise never meet the step that corrects it. In doubt it says
too little: a prediction may refuse a request, and only a certain one should.
"""

from itertools import pairwise
from typing import NamedTuple

# A step counts this much against those of its size before it.
_WEIGHT = 0.2
_FORGOTTEN_AFTER_SECONDS = 60.0
# Nor for more than so many times as long as those: a machine that stood still for a while would
# otherwise turn everybody away afterwards. Steps that have become slower are soon believed.
_MOST_FACTOR = 4.0
# The same for the time from token to token: about as many steps as an answer takes.
_WEIGHT_OF_STEP = 0.03
# A step with prompts in it takes many times as long as one without, and nothing stood still.
_MOST_FACTOR_OF_STEP = 20.0
# Of a mixed step, for its prompts: one step may be quicker than such steps are on average.
_LEAST_SHARE = 0.1


class _Point(NamedTuple):
    """What steps of about one size took, on average."""

    size: float
    seconds: float
    measured_time: float

    def is_forgotten(self, now: float) -> bool:
        """It was measured too long ago to count."""
        return now - self.measured_time > _FORGOTTEN_AFTER_SECONDS

    def towards(self, seconds: float, weight: float, most_factor: float) -> float:
        """Its seconds after one more measurement, of which no more counts than so many of them."""
        believed = min(seconds, most_factor * self.seconds or seconds)
        return self.seconds + weight * (believed - self.seconds)


class Curve:
    """Seconds as a function of size, learned in classes of one power of two each."""

    def __init__(self) -> None:
        self._points: dict[int, _Point] = {}

    def learn(self, size: int, seconds: float, now: float) -> None:
        """Take in one measurement; sizes are positive."""
        number = size.bit_length()
        known = self._points.get(number)
        if known is None or known.is_forgotten(now):
            self._points[number] = _Point(size, seconds, now)
        else:
            self._points[number] = _Point(
                known.size + _WEIGHT * (size - known.size),
                known.towards(seconds, _WEIGHT, _MOST_FACTOR),
                now,
            )

    def predict(self, size: int, now: float) -> float | None:
        """Seconds for this size, or None where nothing is known.

        Straight between two measured sizes and from zero to the first. What is larger than all of
        them takes at least as long as the largest, and more is not known.
        """
        origin = _Point(0, 0.0, now)
        known = (point for _, point in sorted(self._points.items()))
        fresh = [point for point in known if not point.is_forgotten(now)]
        if not fresh:
            return None
        for left, right in pairwise([origin, *fresh]):
            if size <= right.size:
                share = (size - left.size) / (right.size - left.size)
                return left.seconds + share * (right.seconds - left.seconds)
        return max(point.seconds for point in fresh)


class Pace:
    """What the engine's steps cost, by what is in them; times are on the caller's clock.

    max_num_batched_tokens, max_num_encoded_patches: the most that one step takes.
    """

    def __init__(self, *, max_num_batched_tokens: int, max_num_encoded_patches: int) -> None:
        self._max_num_tokens = max_num_batched_tokens
        self._max_num_patches = max_num_encoded_patches
        self._decode = Curve()
        self._prefill = Curve()
        self._encode = Curve()
        self._answer_tokens: float | None = None
        self._token: _Point | None = None
        self._encoding_seconds = 0.0

    def learn_step(
        self, *, num_decodes: int, num_prefill_tokens: int, seconds: float, now: float
    ) -> None:
        """Take in a step's time, the encoding of pictures left out."""
        if num_decodes:
            self._learn_token(num_decodes, seconds + self._encoding_seconds, now)
        self._encoding_seconds = 0.0
        if not num_prefill_tokens:
            self._decode.learn(num_decodes, seconds, now)
            return
        # Both kinds ran in one pass: the decodes' part is what they take without the others.
        decoding = self._decode.predict(num_decodes, now) if num_decodes else None
        prefill = max(seconds - (decoding or 0.0), _LEAST_SHARE * seconds)
        self._prefill.learn(num_prefill_tokens, prefill, now)

    def learn_encoding(self, num_patches: int, seconds: float, now: float) -> None:
        """Take in the time to encode pictures of so many patches together, before their step."""
        self._encoding_seconds += seconds
        self._encode.learn(num_patches, seconds, now)

    def learn_answer(self, num_tokens: int, *, is_whole: bool) -> None:
        """Take in the length of a sequence that has ended; not whole: it would have been longer.

        Under a load where nobody ends in time, those that were cut are all there is to learn from.
        """
        known = self._answer_tokens
        if not is_whole and num_tokens <= (known or 0.0):
            return
        self._answer_tokens = (
            num_tokens if known is None else known + _WEIGHT * (num_tokens - known)
        )

    def prefill_seconds(
        self, num_tokens: int, num_patches: int, num_decodes: int, now: float
    ) -> float | None:
        """Seconds to compute prompts of so many tokens and patches, in as few steps as it takes.

        num_decodes: sequences that decode in every one of these steps. None: nothing is known.
        """
        prefill = _in_steps(self._prefill, num_tokens, self._max_num_tokens, now)
        if prefill is None:
            return None
        encode = _in_steps(self._encode, num_patches, self._max_num_patches, now)
        num_steps = -(-num_tokens // self._max_num_tokens)
        return prefill + (encode or 0.0) + num_steps * self.decode_seconds(num_decodes, now)

    def decode_seconds(self, num_decodes: int, now: float) -> float:
        """Seconds of one step of so many decoding sequences; 0 where nothing is known."""
        return (self._decode.predict(num_decodes, now) if num_decodes else None) or 0.0

    def answers_seconds(self, num_answers: int, num_rows: int, now: float) -> float:
        """Seconds until so many sequences have ended, of `num_rows` that decode together."""
        if num_answers <= 0 or not num_rows:
            return 0.0
        seconds = (self._answer_tokens or 0.0) * self._token_seconds(num_rows, now)
        return num_answers / num_rows * seconds

    def answer_seconds(self, max_tokens: int, num_decodes: int, now: float) -> float:
        """Seconds from an answer's first token to its last, beside so many other sequences.

        0 where nobody knows how long answers are.
        """
        num_tokens = min(self._answer_tokens or 0.0, max_tokens)
        if not num_decodes:  # nothing is in the way, whatever was before
            return num_tokens * self.decode_seconds(1, now)
        return num_tokens * self._token_seconds(num_decodes + 1, now)

    def forget(self) -> None:
        """Start over: what was measured so far was of another kind, as a warm-up is."""
        self._decode, self._prefill, self._encode = Curve(), Curve(), Curve()
        self._answer_tokens = None
        self._token = None
        self._encoding_seconds = 0.0

    def _learn_token(self, num_decodes: int, seconds: float, now: float) -> None:
        known = self._token
        if known is None or known.is_forgotten(now):
            self._token = _Point(num_decodes, seconds, now)
            return
        self._token = _Point(
            num_decodes, known.towards(seconds, _WEIGHT_OF_STEP, _MOST_FACTOR_OF_STEP), now
        )

    def _token_seconds(self, num_decodes: int, now: float) -> float:
        """Seconds from token to token: of late, with the prompts of others in between.

        Those that are to come are not known; while many ask, they are as many as of late.
        """
        alone = self.decode_seconds(num_decodes, now)
        known = self._token
        if known is None or known.is_forgotten(now):
            return alone
        return max(alone, known.seconds)


def _in_steps(curve: Curve, size: int, most: int, now: float) -> float | None:
    """Seconds for a size of which a step takes `most` at once; None where nothing is known."""
    whole, rest = divmod(size, most)
    total = 0.0
    for part, count in ((most, whole), (rest, 1)):
        if part and count:
            seconds = curve.predict(part, now)
            if seconds is None:
                return None
            total += count * seconds
    return total
