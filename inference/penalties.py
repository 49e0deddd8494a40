"""What a sequence pays for tokens it has used: repetition, presence and frequency penalties.

Touches the used tokens' logits only, all rows in one go.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.protocol import SamplingParams
from inference.transfer import to_device


class UsedTokens:
    """The distinct tokens of one sequence, and how often its output has each."""

    def __init__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], vocab_size: int
    ) -> None:
        prompt = np.unique(np.asarray(prompt_token_ids, np.int64))
        prompt = prompt[prompt < vocab_size]
        self._num_tokens = len(prompt)
        self._token_ids = np.zeros(len(prompt) + 256, np.int64)
        self._token_ids[: len(prompt)] = prompt
        self._counts = np.zeros(len(self._token_ids), np.float32)
        self._places = {token_id: place for place, token_id in enumerate(prompt.tolist())}
        for token_id in output_token_ids:
            self.add(token_id)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Ids of prompt and output, each once: [num_used]."""
        return self._token_ids[: self._num_tokens]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        """How often the output has each of token_ids: [num_used]; 0 for the prompt's alone."""
        return self._counts[: self._num_tokens]

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = self._num_tokens
            if place == len(self._token_ids):
                self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._token_ids[place] = token_id
            self._num_tokens += 1
        self._counts[place] += 1


class Penalized(NamedTuple):
    """One row that pays: its place in the batch, what it has used, and its prices."""

    row: int
    used: UsedTokens
    params: SamplingParams


def has_penalties(params: SamplingParams) -> bool:
    """Any of the three penalties is on."""
    return bool(
        params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    )


def apply_penalties(scores: Tensor, penalized: Sequence[Penalized]) -> None:
    """Lower the used tokens' scores in place.

    First repetition_penalty over prompt and output, dividing what is positive and multiplying what
    is negative; then presence_penalty once and frequency_penalty per occurrence in the output.

    Args:
        scores: float32 [num_rows, vocab_size], contiguous.
        penalized: the rows that pay; none twice.

    Source: transformers' `RepetitionPenaltyLogitsProcessor`; the OpenAI API's description.
    """
    vocab_size = scores.shape[1]
    places = np.concatenate([p.row * vocab_size + p.used.token_ids for p in penalized])
    lengths = [len(p.used.token_ids) for p in penalized]
    factors = np.repeat([p.params.repetition_penalty for p in penalized], lengths)
    losses = np.concatenate([_losses(p.used.output_counts, p.params) for p in penalized])
    index = to_device(places, scores.device)
    factor, loss = to_device(np.stack([factors, losses]).astype(np.float32), scores.device)
    values = scores.view(-1)[index]
    values = torch.where(values < 0, values * factor, values / factor) - loss
    scores.view(-1)[index] = values


def _losses(counts: NDArray[np.float32], params: SamplingParams) -> NDArray[np.floating]:
    present = (counts > 0).astype(np.float32)
    return params.presence_penalty * present + params.frequency_penalty * counts
