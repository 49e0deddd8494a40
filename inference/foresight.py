"""How far predictions of a request's end fall short, learned from requests that have ended.

A step's time is known; how many more prompts come in between an answer's tokens is not. Under a
load that keeps everybody waiting, an error to one side lets in what ends after its deadline, and
work is done for nobody. Plain Python: seconds.
"""

# What was overrun moves the factor so far towards what would have sufficed.
_WEIGHT = 0.2
# Prompts that come later will take some of the time, before any of it was seen.
_LEAST = 1.5
_MOST = 4.0
# Half of what was added is forgotten after so long: a burst is no reason to refuse for ever.
_HALF_LIFE_SECONDS = 60.0
# Beside so short a time nothing can be told from noise.
_LEAST_SECONDS = 0.1


class Foresight:
    """A factor for predicted times within which nearly all requests have ended."""

    def __init__(self) -> None:
        self._factor = _LEAST
        self._learned_time = 0.0

    def factor(self, now: float) -> float:
        """The factor of now; the times are on the caller's clock."""
        age = max(0.0, now - self._learned_time)
        return _LEAST + (self._factor - _LEAST) * 0.5 ** (age / _HALF_LIFE_SECONDS)

    def learn(self, predicted_seconds: float, seconds: float, now: float) -> None:
        """Take in how long a request took, and what was predicted without the factor."""
        needed = min(_MOST, (seconds + _LEAST_SECONDS) / (predicted_seconds + _LEAST_SECONDS))
        factor = self.factor(now)
        if needed > factor:
            self._factor = factor + _WEIGHT * (needed - factor)
            self._learned_time = now
