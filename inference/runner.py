"""One step's arithmetic: chunks and pictures in, logits of the rows that choose a token out.

Owns the device: the model, the KV pool, and per sequence only where its tokens stand on the rotary
axes. Which work a step holds is the scheduler's decision.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.attention import CpuAttention, KVShape, Rows
from inference.decoder import VisualRows, last_rows
from inference.embeddings import EmbeddingCache
from inference.model import Model
from inference.protocol import Vision
from inference.rope import prompt_positions
from inference.scheduler import Chunk, Encoding
from inference.sequence import Request


@dataclass(slots=True, frozen=True)
class _Placement:
    """positions: int64 [3, num_prompt_tokens]; rope_delta places what follows."""

    positions: Tensor
    rope_delta: int


class Runner:
    """Runs the model for the engine."""

    def __init__(
        self, model: Model, *, num_blocks: int, block_size: int, embeddings: EmbeddingCache[Tensor]
    ) -> None:
        """Allocate the KV pool for a loaded model."""
        geometry = model.text.geometry
        self.model = model
        self._embeddings = embeddings
        self._attention = CpuAttention(
            KVShape(
                num_layers=geometry.num_layers,
                num_blocks=num_blocks,
                block_size=block_size,
                num_kv_heads=geometry.num_kv_heads,
                head_dim=geometry.head_dim,
            ),
            geometry.num_heads,
            geometry.scaling,
            model.dtype,
        )
        self._placements: dict[Request, _Placement] = {}

    def encode(self, encodings: Items[Encoding]) -> None:
        """Encode pictures together and put their features where `execute` finds them."""
        visions = [encoding.request.visions[encoding.vision] for encoding in encodings]
        features = self.model.vision.encode([_pixels(vision) for vision in visions])
        for encoding, feature in zip(encodings, features, strict=True):
            self._embeddings.store(encoding.key, feature)

    @torch.inference_mode()
    def execute(self, chunks: Items[Chunk]) -> Tensor:
        """Run chunks, single-token ones first and sorted by length.

        Returns:
            Logits [number of completing chunks, vocab], in the order of the chunks.
        """
        token_ids = [t for c in chunks for t in c.sequence.token_ids(c.start, c.end)]
        plan = self._attention.plan([Rows(c.start, c.end, c.sequence.block_table) for c in chunks])
        hidden = self.model.text.forward(
            torch.tensor(token_ids, device=self.model.device),
            self._positions(chunks),
            self._attention,
            plan,
            self._visual_rows(chunks),
        )
        ends = last_rows([c.end - c.start for c in chunks])
        rows = [end for end, chunk in zip(ends, chunks, strict=True) if chunk.completes]
        return self.model.text.logits(hidden[rows])

    def forget(self, request: Request) -> None:
        """Drop what is kept for a finished request."""
        self._placements.pop(request, None)

    def release_memory(self) -> None:
        """Give back what a failed step left behind, as far as it is not in use."""
        self._embeddings.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory_used_bytes(self) -> int:
        """Memory the device holds for this process; 0 where it is the host's own."""
        if self.model.device.type != "cuda":
            return 0
        return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))

    def _positions(self, chunks: Items[Chunk]) -> Tensor:
        parts: list[Tensor] = []
        later: list[int] = []
        for chunk in chunks:
            placement = self._placement(chunk.sequence.request)
            known = placement.positions.shape[1]
            if chunk.start < known:
                if later:
                    parts.append(torch.tensor(later).expand(3, -1))
                    later = []
                parts.append(placement.positions[:, chunk.start : chunk.end])
            first = max(chunk.start, known)
            later += range(first + placement.rope_delta, chunk.end + placement.rope_delta)
        if later:
            parts.append(torch.tensor(later).expand(3, -1))
        return torch.cat(parts, dim=1).to(self.model.device)

    def _placement(self, request: Request) -> _Placement:
        placement = self._placements.get(request)
        if placement is None:
            positions, delta = prompt_positions(len(request.prompt_token_ids), request.spans)
            placement = self._placements[request] = _Placement(positions, delta)
        return placement

    def _visual_rows(self, chunks: Items[Chunk]) -> VisualRows | None:
        rows: list[Tensor] = []
        features: list[Tensor] = []
        offset = 0
        for chunk in chunks:
            request = chunk.sequence.request
            for span in request.spans:
                start, end = max(span.start, chunk.start), min(span.end, chunk.end)
                if start >= end:
                    continue
                key = (request.tenant, request.visions[span.vision].content_hash)
                first = span.first_row + start - span.start
                features.append(self._embeddings.get(key)[first : first + end - start])
                rows.append(torch.arange(offset + start - chunk.start, offset + end - chunk.start))
            offset += chunk.end - chunk.start
        if not rows:
            return None
        return VisualRows(torch.cat(rows).to(self.model.device), torch.cat(features))


def _pixels(vision: Vision) -> Tensor:
    """uint8 [num_frames, height, width, 3]; a copy, since torch takes writable memory only."""
    flat = torch.frombuffer(bytearray(vision.pixels), dtype=torch.uint8)
    return flat.view(vision.num_frames, vision.height, vision.width, 3)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's or the host's allocator had nothing left."""
    # torch's host allocator has no exception class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
