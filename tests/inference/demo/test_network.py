"""The training forward is transformers' own forward."""

import random

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from inference.demo.batch import joint_batch
from inference.demo.labels import Grid
from inference.demo.lessons import Form, joint_lessons, lessons_of_form
from inference.demo.losses import answer_loss, binding_loss, cell_loss
from inference.demo.model import build_config, first_heads, first_weights
from inference.demo.network import read, see
from inference.demo.optimizer import FlatWeights, Optimizer, Rates
from inference.demo.tokenizer import IDS
from inference.demo.transcript import transcribe

WEIGHTS = first_weights(seed=3)


@pytest.fixture(scope="module")
def reference() -> Qwen3VLForConditionalGeneration:
    """transformers' model with the same weights."""
    model = Qwen3VLForConditionalGeneration(build_config()).eval()
    model.load_state_dict(WEIGHTS, strict=False)
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(Form("one_image", "branches", Grid(6, 6)), id="one image"),
        pytest.param(Form("one_image", "text_first", Grid(3, 9)), id="text first, flat grid"),
        pytest.param(Form("one_image", "turns", Grid(8, 4)), id="turns, tall grid"),
        pytest.param(Form("two_images", "branches", Grid(4, 7)), id="two images"),
        pytest.param(Form("text", "turns", Grid(5, 5)), id="no image"),
    ],
)
@torch.inference_mode()
def test_logits_equal_those_of_transformers(
    form: Form, reference: Qwen3VLForConditionalGeneration
) -> None:
    lessons = lessons_of_form(random.Random(8), form, 2)
    batch = joint_batch(lessons, form)
    sight = see(WEIGHTS, batch.pixels, form.grid) if batch.pixels is not None else None
    assert batch.text is not None

    logits = read(WEIGHTS, batch.text, sight).logits

    for index, lesson in enumerate(lessons):
        transcript = transcribe(lesson, form.grid, form.layout)
        # One branch at a time is an ordinary conversation.
        kept = [i for i, branch in enumerate(transcript.branches) if branch in (0, 1)]
        ids = torch.tensor([[transcript.ids[i] for i in kept]])
        pictures = {}
        if batch.pixels is not None:
            pixels = batch.pixels.view(len(lessons), -1, 3, 1, 256)[index]
            pictures["pixel_values"] = pixels.expand(-1, -1, 2, -1).reshape(-1, 3 * 2 * 256)
            grid = [1, 2 * form.grid.height, 2 * form.grid.width]
            pictures["image_grid_thw"] = torch.tensor([grid] * len(lesson.images))
        expected = reference(
            input_ids=ids, mm_token_type_ids=(ids == IDS.image_pad).int(), **pictures
        ).logits[0]
        for row, target in enumerate(transcript.targets):
            if target.row in kept:
                assert torch.allclose(
                    logits[index, row], expected[kept.index(target.row)], atol=1e-4
                )


def test_a_few_steps_lower_every_loss() -> None:
    form = Form("one_image", "branches", Grid(5, 5))
    batch = joint_batch(lessons_of_form(random.Random(1), form, 3), form)
    assert batch.pixels is not None
    assert batch.text is not None
    assert batch.cells is not None
    assert batch.answers is not None
    weights = FlatWeights(first_weights(0) | first_heads(0))
    rates = Rates({"vision": 1e-3, "heads": 3e-3, "text": 2e-3}, 1, 100)
    optimizer = Optimizer(weights, rates)
    history = []
    for _ in range(12):
        views = weights.views(torch.float32)
        sight = see(views, batch.pixels, form.grid)
        reading = read(views, batch.text, sight)
        losses = (
            answer_loss(reading, batch.answers)[0],
            cell_loss(views, sight, batch.cells)[0],
            binding_loss(views, reading, batch.answers)[0],
        )
        history.append([loss.item() for loss in losses])
        torch.stack(losses).sum().backward()
        optimizer.step(1.0)

    assert all(last < 0.9 * first for first, last in zip(history[0], history[-1], strict=True))


def test_lessons_of_a_step_do_not_depend_on_the_steps_before() -> None:
    first = [lesson.exchanges for lesson in joint_lessons(3, 11, 0, 3)]
    joint_lessons(3, 12, 0, 3)

    assert [lesson.exchanges for lesson in joint_lessons(3, 11, 0, 3)] == first
