"""transformers' own `generate` over a batch of questions, as the peers built on it use it.

Runs in a peer's environment; knows nothing of Loupe. Questions are read and pictures decoded here,
so that no peer needs a part of transformers that a machine without a GPU may lack.
"""

import base64
import io
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.generation.streamers import BaseStreamer


class Question(NamedTuple):
    """One request: its prompt with every picture's placeholders, and the pictures' patches."""

    token_ids: list[int]
    pixel_values: list[Tensor]
    grids: list[Tensor]
    max_new_tokens: int


class Answer(NamedTuple):
    """One request's text and its tokens."""

    text: str
    num_prompt_tokens: int
    num_output_tokens: int


class Model:
    """One copy of the model."""

    def __init__(self, folder: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self._model: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.bfloat16
        )
        self._model.eval()
        self._image_token_id = self._model.config.image_token_id

    def read(self, fields: dict[str, Any]) -> Question:
        """Make a question of the native dialect's JSON."""
        encoded = fields.get("images") or [fields["image_base64"]] * ("image_base64" in fields)
        pictures = [self._images(images=[_open(text)], return_tensors="pt") for text in encoded]
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": fields["text"]}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        sizes = iter([int(picture["image_grid_thw"].prod()) // 4 for picture in pictures])
        token_ids: list[int] = []
        for token_id in self.tokenizer.encode(text, add_special_tokens=False):
            count = next(sizes) if token_id == self._image_token_id else 1
            token_ids += [token_id] * count
        return Question(
            token_ids,
            [picture["pixel_values"] for picture in pictures],
            [picture["image_grid_thw"] for picture in pictures],
            int(fields["max_new_tokens"]),
        )

    def answer(
        self, questions: list[Question], streamer: BaseStreamer | None = None
    ) -> list[Answer]:
        """Generate for all of them together, padded to the longest; greedy, no early end."""
        longest = max(len(question.token_ids) for question in questions)
        most_tokens = max(question.max_new_tokens for question in questions)
        padding = [longest - len(question.token_ids) for question in questions]
        pad_id = self.tokenizer.pad_token_id or 0
        input_ids = torch.tensor(
            [[pad_id] * pad + q.token_ids for pad, q in zip(padding, questions, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        visual = {}
        if any(question.grids for question in questions):
            visual = {
                "pixel_values": torch.cat([p for q in questions for p in q.pixel_values]),
                "image_grid_thw": torch.cat([grid for q in questions for grid in q.grids]),
                "mm_token_type_ids": (input_ids == self._image_token_id).int(),
            }
        with torch.inference_mode():
            outputs = self._model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                **visual,
                do_sample=False,
                min_new_tokens=most_tokens,
                max_new_tokens=most_tokens,
                streamer=streamer,
            )
        return [
            self._cut(question, output[longest:].tolist())
            for question, output in zip(questions, outputs, strict=True)
        ]

    def _cut(self, question: Question, token_ids: list[int]) -> Answer:
        token_ids = token_ids[: question.max_new_tokens]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Answer(text, len(question.token_ids), len(token_ids))


def _open(text: str) -> Image.Image:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
