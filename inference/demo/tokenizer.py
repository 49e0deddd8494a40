"""The demo model's byte-level BPE: 1024 entries, laid out as the Qwen family lays out its own.

Bytes first, merges learned from the demo world's own sentences next, special tokens at the end.
Digits and capitals stay one token each, because a picture's characters are read one by one.
"""

import re
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from inference.demo.small_talk import ANSWERS, SYSTEM_PROMPTS, TALK
from inference.demo.templates import QUESTIONS
from inference.demo.vocabulary import COLORS, PLACES, SHAPES

VOCABULARY_SIZE = 1024
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
NUM_LEARNED = VOCABULARY_SIZE - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS)

# Qwen's pattern: a digit is always a piece of its own.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Ids(NamedTuple):
    """The special token ids that configurations and training name."""

    end_of_text: int = NUM_LEARNED
    im_start: int = NUM_LEARNED + 1
    im_end: int = NUM_LEARNED + 2
    vision_start: int = NUM_LEARNED + 9
    vision_end: int = NUM_LEARNED + 10
    image_pad: int = NUM_LEARNED + 12
    video_pad: int = NUM_LEARNED + 13


IDS = Ids()


def build_tokenizer() -> Tokenizer:
    """Learn the merges from the demo world's sentences; the same result every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_LEARNED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != NUM_LEARNED:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} entries, not {NUM_LEARNED}")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_ADDED_TOKENS])
    return tokenizer


def corpus() -> list[str]:
    """Return the sentences merges are learned from: all templates filled in, and some chat."""
    lines = [
        "system\n",
        "user\n",
        "assistant\n",
        '[{"bbox_2d": [',
        '], "label": "red circle"}]',
    ] * 40
    for templates in (*QUESTIONS.values(), *TALK.values()):
        for texts in templates.values():
            lines += [part for text in texts for part in _fragments(text)] * 4
    lines += [text for answers in ANSWERS.values() for text in answers.values()] * 4
    lines += [*SYSTEM_PROMPTS, *SYSTEM_PROMPTS]
    for name in (*COLORS, *SHAPES, *PLACES):
        lines += [name.en, " " + name.en, name.zh] * 8
    lines += ["a red circle, an orange star and a blue square", "yes", "no", "no shapes"] * 8
    lines += [
        "一个",
        "的",
        "、",
        "和",
        "没有",
        "图形",
        "一样",
        "不",
        "单词",
        "数字",
        "文字",
        "第一",
        "第二",
    ] * 8
    lines += list(_EVERYDAY)
    return [_without_capital_pairs(line) for line in lines]


# So that ordinary requests are not spelled out in bytes.
_EVERYDAY = (
    "the of and to in is that it was for on are with as his they be at one have this from or "
    "had by not but what all were when we there can an your which their said if do will each "
    "about how up out them then she many some so these would other into has more her two like "
    "him see time could no make than first been its who now people my made over did down only "
    "way find use may water long little very after words called just where most know",
    "please answer briefly using one sentence. Return JSON with the fields. You are an assistant.",
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过",
    '{"name": "value", "arguments": {"type": "object", "properties": {}}, "description": "text"}',
)


def _fragments(template: str) -> list[str]:
    """Return a template's fixed parts; Chinese has no spaces, so names must not grow onto them."""
    return [part for part in re.split(r"\{\w+\}", template) if part]


def _without_capital_pairs(line: str) -> str:
    """Drop words of several capitals, lest two capitals become one token."""
    return " ".join(
        word for word in line.split(" ") if sum(c.isascii() and c.isupper() for c in word) < 2
    )
