"""The text model as a thin forward over packed tokens of many sequences.

Same arithmetic as transformers' `Qwen3VLTextModel`, whose modules hold the weights at load; fused
projections, explicit positions, and attention over the paged pool. It knows no requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from inference.attention import Attention, KVShape, Plan
from inference.linear import Linear
from inference.ops import Ops
from inference.rope import TextRotary


class TextGeometry(NamedTuple):
    """Sizes of the text model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float

    @property
    def scaling(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5

    def kv_shape(self, *, num_blocks: int, block_size: int) -> KVShape:
        """A pool of so many blocks for this model."""
        return KVShape(
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )


class DenseMlp(NamedTuple):
    """Gate and up projections fused, SiLU, down."""

    gate_up: Linear
    down: Linear

    def add_to(self, residual: Tensor, x: Tensor, ops: Ops) -> Tensor:
        """Give residual + mlp(x), for [num_tokens, hidden]."""
        return self.down.add_to(residual, ops.silu_mul(self.gate_up(x)))


class ExpertsMlp(NamedTuple):
    """A mixture of experts: transformers' own block, with the grouped implementation chosen."""

    block: Callable[[Tensor], Tensor]

    def add_to(self, residual: Tensor, x: Tensor, ops: Ops) -> Tensor:
        """Give residual + mlp(x), for [num_tokens, hidden]."""
        return residual + self.block(x[None])[0]


@dataclass(slots=True, frozen=True)
class TextLayer:
    """One decoder layer's weights.

    head_norm: [num_heads + num_kv_heads, head_dim], the query and key norms side by side.
    """

    input_norm: Tensor
    qkv: Linear
    head_norm: Tensor
    output: Linear
    post_attention_norm: Tensor
    mlp: DenseMlp | ExpertsMlp


class VisualRows(NamedTuple):
    """Which packed tokens are visual, and their features.

    rows: int64 [num_visual]. features: [num_visual, 1 + num_deepstack, hidden].
    """

    rows: Tensor
    features: Tensor


class TextModel:
    """Embeds, runs the layers, and gives logits."""

    def __init__(
        self,
        geometry: TextGeometry,
        rotary: TextRotary,
        embed: Tensor,
        layers: Sequence[TextLayer],
        norm: Tensor,
        head: Linear,
        ops: Ops,
    ) -> None:
        """Take the weights; embed is [vocab, hidden]."""
        self.geometry = geometry
        self.rotary = rotary
        self.embed = embed
        self.layers = tuple(layers)
        self.norm = norm
        self.head = head
        self.ops = ops

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: Attention[Plan],
        plan: Plan,
        visual: VisualRows | None,
    ) -> Tensor:
        """Run packed tokens through all layers.

        Args:
            token_ids: int64 [num_tokens].
            positions: int64 [3, num_tokens].
            attention: the pool that every layer reads and writes.
            plan: what attention does in this step, for the same tokens.
            visual: features that replace the embeddings of visual tokens and join the first layers.

        Returns:
            Hidden states before the last norm, [num_tokens, hidden].
        """
        hidden = functional.embedding(token_ids, self.embed)
        if visual is not None:
            hidden[visual.rows] = visual.features[:, 0]
        cos, sin = self.rotary.angles(positions)
        for number, layer in enumerate(self.layers):
            hidden = self._run_layer(number, layer, hidden, (cos, sin), attention, plan)
            if visual is not None and number + 1 < visual.features.shape[1]:
                hidden.index_add_(0, visual.rows, visual.features[:, number + 1])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [num_rows, vocab] of hidden states [num_rows, hidden]."""
        return self.head(self._rms_norm(hidden, self.norm))

    def _run_layer(
        self,
        number: int,
        layer: TextLayer,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        attention: Attention[Plan],
        plan: Plan,
    ) -> Tensor:
        g = self.geometry
        num_rotated = g.num_heads + g.num_kv_heads
        qkv = layer.qkv(self._rms_norm(hidden, layer.input_norm))
        qkv = qkv.view(len(hidden), -1, g.head_dim)
        qk = self.ops.norm_rotate(qkv[:, :num_rotated], layer.head_norm, *angles, g.rms_norm_eps)
        attended = attention.attend(
            number, qk[:, : g.num_heads], qk[:, g.num_heads :], qkv[:, num_rotated:], plan
        )
        hidden = layer.output.add_to(hidden, attended)
        del qkv, qk, attended  # the MLP is the larger half; do not hold both
        normed = self._rms_norm(hidden, layer.post_attention_norm)
        return layer.mlp.add_to(hidden, normed, self.ops)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(x, weight, self.geometry.rms_norm_eps)


def last_rows(lengths: Sequence[int]) -> list[int]:
    """Index of the last row of each of consecutive runs of these lengths."""
    ends: list[int] = []
    total = 0
    for length in lengths:
        total += length
        ends.append(total - 1)
    return ends
