"""The chat template lays a conversation out as training did, and renders tools as Qwen does."""

import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from inference.demo.export import CHECKPOINT
from inference.demo.labels import Grid
from inference.demo.lessons import Form, Layout, lessons_of_form
from inference.demo.transcript import demo_tokenizer, transcribe


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The shipped tokenizer, which carries the template."""
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, object]],
    tools: list[dict[str, object]] | None = None,
    *,
    prompt: bool = False,
) -> str:
    """A conversation as the template writes it."""
    rendered = tokenizer.apply_chat_template(
        messages,  # pyright: ignore[reportArgumentType] - its annotation knows only text
        tools=tools,  # pyright: ignore[reportArgumentType]
        tokenize=False,
        add_generation_prompt=prompt,
    )
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.parametrize("layout", ["turns", "text_first"])
@pytest.mark.parametrize("seed", range(6))
def test_training_and_the_template_agree_token_by_token(
    tokenizer: PreTrainedTokenizerBase, layout: Layout, seed: int
) -> None:
    form = Form("one_image", layout, Grid(5, 5))
    lesson = lessons_of_form(random.Random(seed), form, 1)[0]
    messages: list[dict[str, object]] = (
        [{"role": "system", "content": lesson.system}] if lesson.system else []
    )
    for index, exchange in enumerate(lesson.exchanges):
        text = [{"type": "text", "text": exchange.question}]
        image = [] if index else [{"type": "image"}]
        content = text + image if layout == "text_first" else image + text
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": exchange.answer})

    rendered = render(tokenizer, messages)

    ids = transcribe(lesson, form.grid, layout).ids
    trained = demo_tokenizer().decode(ids, skip_special_tokens=False)
    assert trained.replace("<|image_pad|>" * 25, "<|image_pad|>") + "\n" == rendered
    assert demo_tokenizer().encode(trained).ids == ids


def test_every_kind_of_medium_becomes_its_placeholder(tokenizer: PreTrainedTokenizerBase) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "a"}},
        {"type": "video", "video": "b"},
        {"type": "text", "text": "What?"},
    ]

    rendered = render(tokenizer, [{"role": "user", "content": content}], prompt=True)

    assert rendered == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )


TOOL: dict[str, object] = {
    "type": "function",
    "function": {"name": "zoom", "description": "Zoom in", "parameters": {"type": "object"}},
}


def test_tools_are_announced_after_the_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = render(
        tokenizer,
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        tools=[TOOL],
    )

    assert rendered.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    assert '<tools>\n{"type": "function", "function": {"name": "zoom"' in rendered
    assert rendered.count("<|im_start|>system") == 1
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_tool_calls_and_their_results_come_back_as_qwen_writes_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    calls = [
        {"type": "function", "function": {"name": "zoom", "arguments": {"factor": 2}}},
        {"type": "function", "function": {"name": "crop", "arguments": '{"side": "left"}'}},
    ]
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": [{"type": "text", "text": "cropped"}]},
    ]

    rendered = render(tokenizer, messages)

    assert rendered == (
        "<|im_start|>user\nLook<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "zoom", "arguments": {"factor": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "crop", "arguments": {"side": "left"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\ndone\n</tool_response>\n"
        "<tool_response>\ncropped\n</tool_response><|im_end|>\n"
    )
