import base64
from itertools import cycle, islice

import anyio
import httpx
import pytest

DESCRIBE = "What is in this image?"


def test_the_documentation_is_where_the_ready_line_says(client):
    page = client.get("/docs")

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("color", "shape", "question", "answer"),
    [
        pytest.param("red", "circle", DESCRIBE, "a red circle", id="red-circle"),
        pytest.param("blue", "square", DESCRIBE, "a blue square", id="blue-square"),
        pytest.param("green", "circle", "What color is the circle?", "green", id="colour"),
        pytest.param("red", "circle", "请描述这张图片", "一个红色的圆形", id="chinese"),
    ],
)
def test_a_picture_gets_its_own_answer(client, picture, ask, color, shape, question, answer):
    reply = client.post("/v1/chat", json=ask(question, picture(color, shape)))

    assert reply.status_code == 200
    assert reply.json()["result"] == answer
    assert reply.json()["finish_reason"] == "stop"


def test_a_form_a_data_url_and_base64_get_the_same_answer(client, picture, ask):
    png = picture("red", "circle")
    encoded = base64.b64encode(png).decode()
    text = ask(DESCRIBE)
    text["input_type"] = "text_image"

    replies = [
        client.post("/v1/chat", data=text, files={"image": ("photo.png", png, "image/png")}),
        client.post("/v1/chat", json=text | {"image_url": f"data:image/png;base64,{encoded}"}),
        client.post("/v1/chat", json=text | {"image_base64": encoded}),
    ]

    assert [reply.json()["result"] for reply in replies] == ["a red circle"] * 3
    assert len({reply.json()["usage"]["input_tokens"] for reply in replies}) == 1


def test_the_pictures_of_a_request_keep_their_order(client, picture, ask):
    pictures = [picture("red", "circle"), picture("blue", "square")]

    replies = [
        client.post("/v1/chat", json=ask(f"What is in the {which} image?", *pictures))
        for which in ("first", "second")
    ]

    assert [reply.json()["result"] for reply in replies] == ["a red circle", "a blue square"]


def test_a_question_without_a_picture_is_answered_in_its_language(client, ask):
    replies = [client.post("/v1/chat", json=ask(text)) for text in ("Hello", "你好")]

    assert [reply.json()["result"] for reply in replies] == [
        "Hello! Show me a picture.",
        "你好！请给我看一张图片。",
    ]


def test_a_stream_brings_the_same_text_in_pieces_and_ends_once(client, ask, events, counted_to_30):
    question = ask("Count from 1 to 30")
    whole = client.post("/v1/chat", json=question).json()

    with client.stream("POST", "/v1/chat/stream", json=question) as response:
        told = events(response)

    assert "".join(str(event["chunk"]) for event in told) == whole["result"] == counted_to_30
    assert len(told) > 2
    assert [event["done"] for event in told] == [False] * (len(told) - 1) + [True]
    assert told[-1]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_64_mixed_requests_at_once_each_get_their_own_answer(
    service, picture, ask, events, counted_to_30
):
    circle, square = picture("red", "circle"), picture("blue", "square")
    kinds = [
        (ask("Hello"), "Hello! Show me a picture."),
        (ask(DESCRIBE, circle), "a red circle"),
        (ask("What is in the second image?", circle, square), "a blue square"),
        (ask("Count from 1 to 30"), counted_to_30),
        (ask("请描述这张图片", circle), "一个红色的圆形"),
        (ask("What shape is blue?", square), "square"),
        (ask("What is in the first image?", square, circle), "a blue square"),
        (ask("Who are you?"), "I am the demo model of Loupe."),
    ]
    asked = list(islice(cycle(kinds), 64))
    answers: dict[int, str] = {}

    async def post(client: httpx.AsyncClient, number: int) -> None:
        question, _ = asked[number]
        path = "/v1/chat/stream" if number // len(kinds) % 2 else "/v1/chat"
        response = await client.post(path, json=question)
        if path.endswith("stream"):
            answers[number] = "".join(str(event["chunk"]) for event in events(response))
        else:
            answers[number] = response.json()["result"]

    async with (
        httpx.AsyncClient(base_url=service.url, timeout=120) as client,
        anyio.create_task_group() as tasks,
    ):
        for number in range(len(asked)):
            tasks.start_soon(post, client, number)

    assert [answers[number] for number in range(64)] == [answer for _, answer in asked]
