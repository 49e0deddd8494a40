"""Decode steps captured once and replayed: one launch instead of thousands.

Knows the text model and fixed buffers, no requests. Each batch size has its graph; smaller batches
are padded with rows that read and write the padding block. All graphs share one memory pool, whose
size the largest, captured first, decides.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from inference.attention import Attention, KVShape, Rows
from inference.blocks import PADDING_BLOCK
from inference.cuda.attention import CudaPlan, decode_arrays
from inference.cuda.kernels import DecodeRows, aligned
from inference.decoder import ExpertsMlp, TextModel
from inference.transfer import staged

Step: TypeAlias = Callable[[], None]
# Takes a step, and gives what does the same again.
Capture: TypeAlias = Callable[[Step], Step]


class _Inputs(NamedTuple):
    """The buffers that a step reads: int32 [max_num_rows] each, tables int32 [capacity].

    They lie one behind the other in this order, so that one transfer fills them.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor


class DecodeGraphs:
    """Runs steps in which every row decodes one token."""

    def __init__(
        self,
        text: TextModel,
        attention: Attention[CudaPlan],
        shape: KVShape,
        *,
        max_num_rows: int,
        capture: Capture | None = None,
    ) -> None:
        """Capture a graph for each batch size; `capture` is the device's own unless given."""
        device = text.embed.device
        self._text = text
        self._attention = attention
        self._block_size = shape.block_size
        self._device = device
        self._width = aligned(max_num_rows)
        # Sequences that share blocks list them more than once; a few times over is plenty.
        capacity = 1 + 4 * shape.num_blocks
        self._buffer = torch.zeros(5 * self._width + capacity, dtype=torch.int32, device=device)
        self._inputs = _Inputs(*self._buffer.split([self._width] * 5 + [capacity]))
        self._inputs.lengths.fill_(1)
        self._logits = torch.zeros(max_num_rows, text.head.out_features, device=device)
        self._sizes = batch_sizes(max_num_rows)
        capture = capture or _CudaCapture(device)
        self._replays = {size: capture(self._step(size)) for size in reversed(self._sizes)}

    @torch.inference_mode()
    def run(
        self, token_ids: Sequence[int], positions: Sequence[int], rows: Sequence[Rows]
    ) -> Tensor | None:
        """Decode one token a row.

        Returns:
            Logits, float32 [num_rows, vocab], the caller's until the next run; None where the
            rows or their block tables are more than the buffers hold.
        """
        tables, starts, lengths = decode_arrays(rows)
        if len(rows) > self._sizes[-1] or len(tables) >= len(self._inputs.tables):
            return None
        num_rows, block_size = len(rows), self._block_size
        last = lengths - 1
        slots = tables[starts + last // block_size] * block_size + last % block_size
        header = np.zeros((5, self._width), np.int32)
        header[4] = 1  # rows that pad attend to the padding block's first token
        # The tables begin with the padding block, for those rows.
        columns = (token_ids, positions, slots, starts + 1, lengths)
        for line, column in zip(header, columns, strict=True):
            line[:num_rows] = column
        host = np.concatenate([header.ravel(), np.array([PADDING_BLOCK], np.int32), tables])
        self._buffer[: len(host)].copy_(
            staged(torch.from_numpy(host), self._device), non_blocking=True
        )
        self._replays[self._sizes[bisect_left(self._sizes, num_rows)]]()
        return self._logits[:num_rows]

    def _step(self, size: int) -> Step:
        token_ids, positions, slots, starts, lengths = (part[:size] for part in self._inputs[:5])
        rows = DecodeRows(self._inputs.tables, starts, lengths)
        plan = CudaPlan(slots, rows, [])

        @torch.inference_mode()
        def step() -> None:
            hidden = self._text.forward(
                token_ids, positions.expand(3, -1), self._attention, plan, None
            )
            self._logits[:size].copy_(self._text.logits(hidden))

        return step


class _CudaCapture:
    """Captures into graphs that share their memory, and so must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()  # compiling kernels and making libraries' workspaces cannot be captured
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the pipes' readers, may use the device meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            step()
        return graph.replay


def batch_sizes(most: int) -> list[int]:
    """Batch sizes that get a graph: few rows exactly, more by eights, and the most there can be."""
    return [size for size in (1, 2, 4, *range(8, most, 8)) if size < most] + [most]


def reason_not_to_capture(text: TextModel) -> str | None:
    """Why this model's decode steps cannot be captured on its GPU, or None."""
    if not any(isinstance(layer.mlp, ExpertsMlp) for layer in text.layers):
        return None
    major, minor = torch.cuda.get_device_capability(text.embed.device)
    # Elsewhere torch's grouped product is a loop that reads the groups' sizes back.
    if major in (9, 10) and text.embed.dtype is torch.bfloat16:
        return None
    return f"experts need bfloat16 on SM90 or SM100, here {text.embed.dtype} on SM{major}{minor}"
