"""One step's arithmetic: chunks and pictures in, logits of the rows that choose a token out.

Owns the device: the model, the KV pool, and per sequence only where its tokens stand on the rotary
axes. Which work a step holds is the scheduler's decision.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch
from torch import Tensor

from inference.attention import Attention, CpuAttention, KVShape, Rows
from inference.decoder import VisualRows, last_rows
from inference.embeddings import EmbeddingCache
from inference.model import Model
from inference.protocol import Vision
from inference.rope import prompt_positions
from inference.sequence import Request
from inference.step import Chunk, Encoding
from inference.transfer import upload

if TYPE_CHECKING:
    # It needs Triton, which comes with torch's CUDA build alone.
    from inference.cuda.graphs import DecodeGraphs

_log = structlog.get_logger()


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
        self.model = model
        self._embeddings = embeddings
        self._shape = model.text.geometry.kv_shape(num_blocks=num_blocks, block_size=block_size)
        self._attention = make_attention(model, self._shape)
        self._graphs: DecodeGraphs | None = None
        self._placements: dict[Request, _Placement] = {}

    def capture_decodes(self, max_num_seqs: int) -> None:
        """Capture decode steps of so many sequences, where the device and the model allow it."""
        if self.model.device.type != "cuda":
            return
        from inference.cuda.graphs import DecodeGraphs, reason_not_to_capture

        reason = reason_not_to_capture(self.model.text)
        if reason is not None:
            _log.warning("decode steps are not captured", reason=reason)
            return
        self._graphs = DecodeGraphs(
            self.model.text, self._attention, self._shape, max_num_rows=max_num_seqs
        )

    def encode(self, encodings: Items[Encoding]) -> None:
        """Encode pictures together and put their features where `execute` finds them."""
        visions = [encoding.request.visions[encoding.vision] for encoding in encodings]
        pixels = [_pixels(vision, self.model.device) for vision in visions]
        features = self.model.vision.encode(pixels)
        for encoding, feature in zip(encodings, features, strict=True):
            self._embeddings.store(encoding.key, feature)

    @torch.inference_mode()
    def execute(self, chunks: Items[Chunk]) -> Tensor:
        """Run chunks, single-token ones first and sorted by length.

        Returns:
            Logits [number of completing chunks, vocab], in the order of the chunks; the caller's
            until the next call.
        """
        token_ids = [t for c in chunks for t in c.sequence.token_ids(c.start, c.end)]
        rows = [Rows(c.start, c.end, c.sequence.block_table) for c in chunks]
        logits = self._replay(chunks, token_ids, rows)
        if logits is not None:
            return logits
        hidden = self.model.text.forward(
            upload(torch.tensor(token_ids), self.model.device),
            self._positions(chunks),
            self._attention,
            self._attention.plan(rows),
            self._visual_rows(chunks),
        )
        ends = last_rows([chunk.num_tokens for chunk in chunks])
        completing = [end for end, chunk in zip(ends, chunks, strict=True) if chunk.completes]
        index = upload(torch.tensor(completing, dtype=torch.int64), self.model.device)
        return self.model.text.logits(hidden.index_select(0, index))

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

    def _replay(
        self, chunks: Items[Chunk], token_ids: Items[int], rows: Items[Rows]
    ) -> Tensor | None:
        """Run a captured step, where there is one for these chunks."""
        if self._graphs is None or not all(map(_decodes, chunks)):
            return None
        deltas = [self._placement(chunk.sequence.request).rope_delta for chunk in chunks]
        positions = [c.start + delta for c, delta in zip(chunks, deltas, strict=True)]
        return self._graphs.run(token_ids, positions, rows)

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
        return upload(torch.cat(parts, dim=1), self.model.device)

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
                first = span.first_row + start - span.start
                picture = self._embeddings.get(request.embedding_key(span.vision))
                features.append(picture[first : first + end - start])
                rows.append(torch.arange(offset + start - chunk.start, offset + end - chunk.start))
            offset += chunk.num_tokens
        if not rows:
            return None
        return VisualRows(upload(torch.cat(rows), self.model.device), torch.cat(features))


def make_attention(model: Model, shape: KVShape) -> Attention[Any]:
    """The KV pool and attention that fit the model's device."""
    geometry = model.text.geometry
    if model.device.type != "cuda":
        return CpuAttention(shape, geometry.num_heads, geometry.scaling, model.dtype, model.kernels)
    from inference.cuda.attention import CudaAttention

    return CudaAttention(shape, geometry.num_heads, geometry.scaling, model.dtype, model.device)


def _decodes(chunk: Chunk) -> bool:
    """Whether a chunk is one generated token, which stands alike on all axes and shows nothing."""
    prompt = len(chunk.sequence.request.prompt_token_ids)
    return chunk.completes and chunk.num_tokens == 1 and chunk.start >= prompt


def _pixels(vision: Vision, device: torch.device) -> Tensor:
    """uint8 [num_frames, height, width, 3]; a copy, from which the device can read by itself."""
    flat = torch.empty(len(vision.pixels), dtype=torch.uint8, pin_memory=device.type == "cuda")
    flat.numpy()[:] = np.frombuffer(vision.pixels, np.uint8)
    return flat.view(vision.num_frames, vision.height, vision.width, 3)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's or the host's allocator had nothing left."""
    # torch's host allocator has no exception class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
