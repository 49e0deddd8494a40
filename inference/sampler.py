"""Chooses every row's next token, all rows of a step at once.

Knows logits and sampling parameters, not sequences or schedules. Waits for the device once per
step, once more where logprobs are asked, and once where a cut needs more candidates than it got.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.grammar import GrammarMatcher
from inference.noise import exponential_noise, noise_key
from inference.penalties import Penalized, UsedTokens, apply_penalties, has_penalties
from inference.protocol import RefusalCode, SamplingParams, TokenLogprob
from inference.transfer import to_device

# Below it the likeliest token wins by far more than float32 can tell.
GREEDY_TEMPERATURE = 1e-5
NUM_CANDIDATES = 1024
# Candidates beyond top_k, for tokens that tie with the last one: bfloat16 logits often do.
NUM_SPARE_CANDIDATES = 64
# Work over a whole vocabulary goes in slabs of about so many values: on a CPU what the cache holds
# (twelve times faster than all rows at once), on a GPU what bounds the working memory.
SLAB_VALUES_CPU = 2**18
SLAB_VALUES_CUDA = 2**24


class SampledTokens(NamedTuple):
    """One entry per row; logprobs are None where none were asked."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]


class SamplerState:
    """What choosing one sequence's tokens depends on besides its logits.

    The same arguments give the same choices: rebuilt from its tokens, a seeded sequence goes on
    as it would have. Without a seed it draws one of its own.

    Args:
        output_token_ids: tokens the sequence has already got; the matcher stands behind them.
        index: the sequence's place among its request's; joins the seed.
        vocab_size: the logits' width.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        vocab_size: int,
        index: int = 0,
        matcher: GrammarMatcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.num_output_tokens = len(output_token_ids)
        stop, eos = frozenset(params.stop_token_ids), frozenset(eos_token_ids)
        self.end_token_ids = stop if params.ignore_eos else stop | eos
        self._unwanted_early = _within(stop | eos, vocab_size)
        self.bias = {i: b for i, b in params.logit_bias.items() if 0 <= i < vocab_size}
        self.used: UsedTokens | None = None
        if has_penalties(params):
            # The prompt counts for repetition_penalty alone.
            prompt = prompt_token_ids if params.repetition_penalty != 1 else ()
            self.used = UsedTokens(prompt, output_token_ids, vocab_size)
        self._seed = secrets.randbits(64) if params.seed is None else params.seed
        self._index = index

    @property
    def is_complete(self) -> bool:
        """The grammar is satisfied and admits no further token: the sequence has stopped."""
        return self.matcher is not None and self.matcher.is_complete

    @property
    def error(self) -> RefusalCode | None:
        """Why the grammar failed; the sequence cannot go on."""
        return None if self.matcher is None else self.matcher.error

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is chosen, without chance."""
        return self.params.temperature < GREEDY_TEMPERATURE

    @property
    def is_plain(self) -> bool:
        """The likeliest token is chosen, and nothing else is asked."""
        return (
            self.is_greedy
            and self.used is None
            and self.matcher is None
            and self.params.logprobs is None
            and not self.bias
            and not self.unwanted_token_ids
        )

    @property
    def unwanted_token_ids(self) -> list[int]:
        """End tokens that must not be chosen now: min_tokens is not reached."""
        is_early = self.num_output_tokens < self.params.min_tokens
        return self._unwanted_early if is_early else []

    @property
    def noise_key(self) -> int:
        """Key of the next token's noise: of the seed, the sequence's index and the token's."""
        return noise_key(self._seed, self._index, self.num_output_tokens)

    def accept(self, token_id: int) -> None:
        """Note the token that was chosen; end tokens too."""
        self.num_output_tokens += 1
        if self.used is not None:
            self.used.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)


class Sampler:
    """Chooses tokens; all that lasts from step to step is in the rows' states."""

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: Sequence[SamplerState]) -> SampledTokens:
        """Choose one token for every row.

        In order: bias, penalties, end tokens that must wait, grammar; then the likeliest, or
        temperature, top_k, top_p, min_p and chance. Cuts are transformers', but that a nucleus
        keeps all tokens as likely as its last one. Logprobs are the model's own: of the raw logits.

        Args:
            logits: [num_rows, vocab_size], any float type, any device; may be overwritten.
            rows: their states, in the logits' order; left as they are, see `accept`.
        """
        scores = logits.float().contiguous()
        if all(row.is_plain for row in rows):
            return SampledTokens(scores.argmax(dim=-1).tolist(), [None] * len(rows))
        asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        raw_logprobs = _select(scores, asking).log_softmax(dim=-1) if asking else None
        _edit(scores, rows)
        token_ids = _choose(scores, rows)
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        if raw_logprobs is not None:
            chosen = [token_ids[i] for i in asking]
            counts = [rows[i].params.logprobs or 0 for i in asking]
            for i, logprob in zip(asking, _logprobs(raw_logprobs, chosen, counts), strict=True):
                logprobs[i] = logprob
        return SampledTokens(token_ids, logprobs)


class _Cuts(NamedTuple):
    """The drawing rows' parameters on the device, one row each: [num_rows, 1]."""

    keys: Tensor  # int64
    top_k: Tensor  # int64; 0 is off
    temperature: Tensor
    top_p: Tensor  # inf is off
    log_min_p: Tensor  # -inf is off


def _edit(scores: Tensor, rows: Sequence[SamplerState]) -> None:
    """Apply in place what changes logits before a token is chosen."""
    vocab_size = scores.shape[1]
    flat = scores.view(-1)
    bias = {i * vocab_size + t: b for i, row in enumerate(rows) for t, b in row.bias.items()}
    if bias:
        values = to_device(np.array(list(bias.values()), np.float32), scores.device)
        flat.index_add_(0, _index(list(bias), scores.device), values)
    penalized = [
        Penalized(i, row.used, row.params) for i, row in enumerate(rows) if row.used is not None
    ]
    if penalized:
        apply_penalties(scores, penalized)
    constrained = [i for i, row in enumerate(rows) if row.matcher is not None]
    forbidden = _forbidden_tokens(scores, rows, constrained) if constrained else None
    unwanted = [
        i * vocab_size + token_id
        for i, row in enumerate(rows)
        if not row.is_complete  # a complete grammar leaves nothing but end tokens
        for token_id in row.unwanted_token_ids
    ]
    if unwanted:
        flat.index_fill_(0, _index(unwanted, scores.device), -torch.inf)
    if forbidden is not None:
        masked = _select(scores, constrained).masked_fill_(forbidden, -torch.inf)
        if len(constrained) < len(rows):
            scores.index_copy_(0, _index(constrained, scores.device), masked)


def _forbidden_tokens(
    scores: Tensor, rows: Sequence[SamplerState], constrained: list[int]
) -> Tensor:
    """Ask the grammars: bool [num_constrained, vocab_size], True where a token must not come."""
    vocab_size = scores.shape[1]
    words = np.empty((len(constrained), -(-vocab_size // 32)), np.int32)
    for line, i in zip(words, constrained, strict=True):
        matcher = rows[i].matcher
        if matcher is not None:
            matcher.fill_mask(line)
    octets = to_device(words.view(np.uint8), scores.device)
    bits = 1 << torch.arange(8, dtype=torch.uint8, device=scores.device)
    allowed = octets[:, :, None] & bits  # [num_constrained, num_octets, 8]
    return (allowed == 0).flatten(1)[:, :vocab_size]


def _choose(scores: Tensor, rows: Sequence[SamplerState]) -> list[int]:
    """Choose a token per row from edited scores, waiting for the device once (rarely twice)."""
    greedy = [i for i, row in enumerate(rows) if row.is_greedy]
    cut = [i for i, row in enumerate(rows) if not row.is_greedy and _is_cut(row.params)]
    uncut = sorted({*range(len(rows))}.difference(greedy, cut))
    chosen = []
    if greedy:
        chosen.append(_select(scores, greedy).argmax(dim=-1))
    chosen += [
        _draw(_select(scores, slab), [rows[i] for i in slab]) for slab in _slabs(uncut, scores)
    ]
    if cut:
        token_ids, is_certain = _draw_from_top(_select(scores, cut), [rows[i] for i in cut])
        chosen += [token_ids, is_certain.long()]
    values = torch.cat(chosen).tolist()
    by_row = dict(zip(greedy + uncut + cut, values, strict=False))
    certain = values[len(rows) :]
    unsure = [i for i, is_certain in zip(cut, certain, strict=True) if not is_certain]
    for slab in _slabs(unsure, scores):
        token_ids, _ = _draw_from_top(
            _select(scores, slab), [rows[i] for i in slab], scores.shape[1]
        )
        by_row.update(zip(slab, token_ids.tolist(), strict=True))
    return [by_row[i] for i in range(len(rows))]


def _draw(scores: Tensor, rows: Sequence[SamplerState]) -> Tensor:
    """Draw from all of the vocabulary: int64 [num_rows]."""
    cuts = _cuts(rows, scores.device)
    all_token_ids = torch.arange(scores.shape[1], device=scores.device)[None]
    return _race(scores / cuts.temperature, all_token_ids, cuts.keys).squeeze(1)


def _draw_from_top(
    scores: Tensor, rows: Sequence[SamplerState], num_candidates: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw within top_k, top_p and min_p, looking at the best candidates only.

    Returns:
        Token ids, int64 [num_rows], and bool [num_rows]: False where more may have made the cut
        than were looked at, so that the token means nothing.
    """
    vocab_size = scores.shape[1]
    num_candidates = min(num_candidates or max(map(_num_candidates, rows)), vocab_size)
    cuts = _cuts(rows, scores.device)
    values, token_ids = scores.topk(num_candidates)  # [num_rows, num_candidates], best first
    values = values / cuts.temperature
    best = values[:, :1]
    last_of_top_k = values.gather(1, cuts.top_k.clamp(1, num_candidates) - 1)
    lowest = torch.where(cuts.top_k > 0, last_of_top_k, -torch.inf)
    weights = torch.where(values >= lowest, (values - best).exp(), 0)
    total = weights.sum(dim=1, keepdim=True)
    if any(row.params.top_p < 1 and not row.params.top_k for row in rows):
        everything = _total_weight(scores, cuts.temperature, best)
        total = torch.where(cuts.top_k > 0, total, everything)
    is_in_nucleus = weights.cumsum(dim=1) - weights < cuts.top_p * total
    is_in_nucleus[:, 0] = True
    last_of_nucleus = torch.where(is_in_nucleus, values, torch.inf).amin(dim=1, keepdim=True)
    lowest = lowest.maximum(last_of_nucleus).maximum(best + cuts.log_min_p)
    drawn = _race(values.masked_fill(values < lowest, -torch.inf), token_ids, cuts.keys)
    last = values[:, -1]
    is_certain = (lowest.squeeze(1) > last) | last.isneginf() | (num_candidates == vocab_size)
    return token_ids.gather(1, drawn).squeeze(1), is_certain


def _total_weight(scores: Tensor, temperature: Tensor, best: Tensor) -> Tensor:
    """Sum exp(scores / temperature - best) over the vocabulary: [num_rows, 1]."""
    height = _slab_height(scores)
    parts = zip(*(part.split(height) for part in (scores, temperature, best)), strict=True)
    return torch.cat([(s / t).sub_(b).exp_().sum(dim=1, keepdim=True) for s, t, b in parts])


def _race(scores: Tensor, token_ids: Tensor, keys: Tensor) -> Tensor:
    """Draw a place per row in proportion to exp(scores): int64 [num_rows, 1].

    Each token draws an exponential time of rate exp(score); the first to arrive wins.
    """
    return (scores - exponential_noise(keys, token_ids).log_()).argmax(dim=1, keepdim=True)


def _cuts(rows: Sequence[SamplerState], device: torch.device) -> _Cuts:
    params = [row.params for row in rows]
    keys_and_counts = np.array([[row.noise_key, row.params.top_k] for row in rows], np.int64)
    top_ps = [p.top_p if p.top_p < 1 else np.inf for p in params]
    log_min_ps = [np.log(p.min_p) if p.min_p > 0 else -np.inf for p in params]
    temperatures = [p.temperature for p in params]
    reals = np.array([temperatures, top_ps, log_min_ps], np.float32).T.copy()
    whole, real = to_device(keys_and_counts, device), to_device(reals, device)
    return _Cuts(*whole.split(1, dim=1), *real.split(1, dim=1))


def _logprobs(raw: Tensor, chosen: list[int], counts: list[int]) -> list[TokenLogprob]:
    """Read off log probabilities [num_rows, vocab_size], the counts likeliest ones best first."""
    of_chosen = raw.gather(1, _index(chosen, raw.device)[:, None])
    values, token_ids = raw.topk(min(max(counts), raw.shape[1]), dim=1)
    lines = torch.cat([of_chosen.double(), values.double(), token_ids.double()], dim=1).tolist()
    width = values.shape[1]
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=line[0],
            top=[(int(line[1 + width + j]), line[1 + j]) for j in range(min(count, width))],
        )
        for token_id, line, count in zip(chosen, lines, counts, strict=True)
    ]


def _select(scores: Tensor, rows: Sequence[int]) -> Tensor:
    """Take rows: scores itself when it is all of them, else a copy."""
    if len(rows) == scores.shape[0]:
        return scores
    return scores.index_select(0, _index(rows, scores.device))


def _index(places: Sequence[int], device: torch.device) -> Tensor:
    return to_device(np.array(places, np.int64), device)


def _slabs(rows: list[int], scores: Tensor) -> list[list[int]]:
    height = _slab_height(scores)
    return [rows[start : start + height] for start in range(0, len(rows), height)]


def _slab_height(scores: Tensor) -> int:
    num_values = SLAB_VALUES_CUDA if scores.is_cuda else SLAB_VALUES_CPU
    return max(1, num_values // scores.shape[1])


def _is_cut(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _num_candidates(row: SamplerState) -> int:
    return row.params.top_k + NUM_SPARE_CANDIDATES if row.params.top_k else NUM_CANDIDATES


def _within(token_ids: frozenset[int], vocab_size: int) -> list[int]:
    return [token_id for token_id in token_ids if 0 <= token_id < vocab_size]
