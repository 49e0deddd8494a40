import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText

from inference.architecture import Architecture
from inference.attention import CpuAttention, Rows
from inference.checkpoint_json import read_architecture
from inference.config import EngineConfig
from inference.decoder import VisualRows
from inference.footprint import attention_bytes, prefill_bytes, scores_bytes, vision_bytes
from inference.model import Model, take_over

NUM_TOKENS = 512
CONTEXT = 2048
BLOCK_SIZE = 16
HEIGHT, WIDTH = 512, 1024
CONFIG = EngineConfig(
    max_num_batched_tokens=NUM_TOKENS,
    max_num_encoded_patches=HEIGHT * WIDTH // 16**2,
    max_pixels=65536,
)
WIDE_MLP = {"num_attention_heads": 8, "intermediate_size": 768}
WIDE_ATTENTION = {"num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 300}
MIXTURE = {
    "num_attention_heads": 16,
    "intermediate_size": 768,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
}


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside it and still alive; `peak` is their most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _plain_tensors((args, kwargs)):
            address = tensor.untyped_storage()._cdata
            if address not in self._alive:
                self._known.add(address)  # made outside: weights, the pool, the inputs
        made = func(*args, **(kwargs or {}))
        for tensor in _plain_tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive and storage._cdata not in self._known:
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return made


def _plain_tensors(tree: object) -> list[Tensor]:
    """The tensors that have storage; oneDNN's packed weights have none to ask."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return [tensor for tensor in tensors if not tensor.is_mkldnn]


@pytest.fixture
def build(
    checkpoint_files: dict[str, Any], write_checkpoint: Callable[[dict[str, Any]], Path]
) -> Callable[..., tuple[Architecture, Model]]:
    """Makes a small model with random weights, and reads its architecture."""

    def build(dtype: str, text: dict[str, int]) -> tuple[Architecture, Model]:
        config = checkpoint_files["config.json"]
        config["model_type"] = "qwen3_vl_moe" if "num_experts" in text else "qwen3_vl"
        config["text_config"] |= {"hidden_size": 256, **text}
        config["vision_config"] |= {
            "hidden_size": 288,
            "intermediate_size": 1076,
            "out_hidden_size": 256,
        }
        folder = write_checkpoint(checkpoint_files)
        architecture = msgspec.structs.replace(read_architecture(folder), dtype=dtype)
        source = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
        return architecture, take_over(source.to(getattr(torch, dtype)))

    return build


@torch.inference_mode()
def vision_peak(model: Model) -> int:
    with PeakMemory() as memory:
        model.vision.encode([torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)])
    return memory.peak


@torch.inference_mode()
def prefill_peak(model: Model, start: int) -> int:
    """The most a chunk of visual tokens holds that begins at `start`."""
    geometry = model.text.geometry
    blocks = list(range(1, 1 + CONTEXT // BLOCK_SIZE))
    shape = geometry.kv_shape(num_blocks=1 + len(blocks), block_size=BLOCK_SIZE)
    attention = CpuAttention(
        shape, geometry.num_heads, geometry.scaling, model.dtype, model.kernels
    )
    features = torch.zeros(NUM_TOKENS, 3, geometry.hidden_size, dtype=model.dtype)
    positions = torch.arange(NUM_TOKENS).expand(3, -1)
    with PeakMemory() as memory:
        plan = attention.plan([Rows(start, start + NUM_TOKENS, blocks)])
        visual = VisualRows(torch.arange(NUM_TOKENS), features.clone())
        model.text.forward(torch.zeros(NUM_TOKENS).long(), positions, attention, plan, visual)
    return memory.peak


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        pytest.param("float32", WIDE_MLP, id="float32"),
        pytest.param("bfloat16", WIDE_MLP, id="wide-mlp"),
        pytest.param("bfloat16", WIDE_ATTENTION, id="wide-attention"),
        pytest.param("bfloat16", MIXTURE, id="mixture"),
    ],
)
def test_a_step_holds_no_more_than_the_formulas_say_and_not_much_less(build, dtype, text):
    architecture, model = build(dtype, text)
    prefill = prefill_bytes(architecture, CONFIG)
    vision = vision_bytes(architecture, CONFIG)
    scores = scores_bytes(architecture, CONFIG)
    context = attention_bytes(architecture, CONFIG, num_tokens=CONTEXT)

    assert 0.6 * prefill < prefill_peak(model, 0) <= prefill + scores
    assert prefill_peak(model, CONTEXT - NUM_TOKENS) <= prefill + scores + context
    assert 0.6 * vision < vision_peak(model) <= vision + scores
