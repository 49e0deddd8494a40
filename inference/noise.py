"""Randomness by counting: a draw depends on its key and a token id, on nothing drawn before.

So a sequence draws the same whatever runs beside it, and the same again after a preemption or in
another engine. Source: SplitMix64 (Steele, Lea and Flood, 2014), one output per (key, token id).
"""

from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def noise_key(*parts: int) -> int:
    """Mix numbers into one int64 key, in order: a seed, a sequence's index, a token's."""
    key = 0
    for part in parts:
        key = _mixed((key ^ (part & _WORD)) + _GAMMA & _WORD)
    return _signed(key)


def exponential_noise(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Draw from the exponential distribution of mean 1.

    Args:
        keys: int64 [num_rows, 1].
        token_ids: int64 [num_rows or 1, num_tokens].

    Returns:
        float32 [num_rows, num_tokens], above 0 and finite.
    """
    words = token_ids * _signed(_GAMMA) + keys  # int64 wraps, as the algorithm wants
    words = words.bitwise_xor_(_shifted(words, 30)).mul_(_signed(_FIRST))
    words = words.bitwise_xor_(_shifted(words, 27)).mul_(_signed(_SECOND))
    words = words.bitwise_xor_(_shifted(words, 31))
    # Small uniforms keep all of their 53 bits in a float32; it is they that win a race.
    uniform = _shifted(words, 11).float().mul_(2**-53).clamp_(2**-54, 1 - 2**-24)
    return uniform.neg_().log1p_().neg_()


def _shifted(words: Tensor, count: int) -> Tensor:
    """Shift right, filling with zeros: int64's own shift copies the sign."""
    return (words >> count).bitwise_and_((1 << 64 - count) - 1)


def _mixed(word: int) -> int:
    word = (word ^ word >> 30) * _FIRST & _WORD
    word = (word ^ word >> 27) * _SECOND & _WORD
    return word ^ word >> 31


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
