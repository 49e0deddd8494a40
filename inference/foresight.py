"""How far predictions of a request's end fall short, learned from requests that have ended.

A step's time is known; how many more prompts come in between an answer's tokens is not. Under a
load that keeps everybody waiting, an error to one side lets in what ends after its deadline, and
work is done for nobody. Plain Python: seconds.
"""

# What was overrun moves the margin so far towards what would have sufficed.
_WEIGHT = 0.2
# Prompts that come later will take some of the time, before any of it was seen.
_LEAST_FACTOR = 1.5
# Whatever it was that made a request take longer than this many times its prediction, it was not
# the load.
_MOST_FACTOR = 4.0
# Half of the margin is forgotten after so long: a burst is no reason to refuse for ever.
_HALF_LIFE_SECONDS = 60.0


class Foresight:
    """A margin to predicted times within which nearly all requests have ended.

    In seconds, not in parts of the time: a prompt that comes in between takes a short request and
    a long one as long. A factor learned from short requests would turn long ones away that fit.
    """

    def __init__(self) -> None:
        self._margin = 0.0
        self._learned_time = 0.0

    def expect(self, predicted_seconds: float, now: float) -> float:
        """Tell within how many seconds a request will nearly surely have ended."""
        return max(_LEAST_FACTOR * predicted_seconds, predicted_seconds + self._margin_at(now))

    def learn(self, predicted_seconds: float, seconds: float, now: float) -> None:
        """Take in how long a request took, and what was predicted without the margin."""
        needed = min(seconds, _MOST_FACTOR * predicted_seconds) - predicted_seconds
        margin = self._margin_at(now)
        if needed > margin:
            self._margin = margin + _WEIGHT * (needed - margin)
            self._learned_time = now

    def _margin_at(self, now: float) -> float:
        age = max(0.0, now - self._learned_time)
        return self._margin * 0.5 ** (age / _HALF_LIFE_SECONDS)
