"""The OpenAI dialect when all goes well: replies, what reaches the engine, where parts end up."""

import base64
import io
import json

import msgspec
import pytest
from PIL import Image

from inference.protocol import FinishReason

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "What is this?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


@pytest.fixture
def question(model) -> dict:
    return {"model": model.name, "messages": [USER]}


@pytest.fixture
def image(picture_text) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture_text}"}}


async def test_reply_is_a_chat_completion(service, question):
    response = await service.client.post(PATH, json=question)

    reply = response.json()
    (choice,) = reply["choices"]
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "x-ignored-params" not in response.headers
    assert reply["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    assert (reply["object"], reply["model"]) == ("chat.completion", question["model"])
    assert reply["created"] > 1_700_000_000
    assert reply["system_fingerprint"].startswith("fp_")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "A red circle.", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }


async def test_usage_tells_text_from_pictures(service, question, image):
    question["messages"] = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, image]}]

    usage = (await service.client.post(PATH, json=question)).json()["usage"]

    (request,) = service.engine.requests
    details = usage["prompt_tokens_details"]
    assert usage["prompt_tokens"] == len(request.prompt_token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert details["text_tokens"] + details["image_tokens"] == usage["prompt_tokens"]
    assert details["image_tokens"] == request.visions[0].height * request.visions[0].width // 32**2
    assert details["cached_tokens"] == 2
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_the_same_conversation_is_the_same_to_the_engine_in_either_dialect(
    service, question, image, picture_text
):
    question["messages"] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]},
    ]
    native = {"text": "What is this?", "system": "Be brief.", "image_base64": picture_text}

    await service.client.post(PATH, json=question)
    await service.client.post("/v1/chat", json=native)

    ours, theirs = service.engine.requests
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    assert ours.visions[0].content_hash == theirs.visions[0].content_hash


async def test_every_sampling_field_reaches_the_engine(service, question):
    same = {
        "temperature": 0.5, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.5,
        "frequency_penalty": -1.0, "repetition_penalty": 1.2, "seed": -5, "min_tokens": 3,
        "stop_token_ids": [5, 6], "ignore_eos": True,
    }  # fmt: skip
    other = {"max_tokens": 20, "logit_bias": {"7": -100}, "repetition_detection": False}

    response = await service.client.post(PATH, json=question | same | other)

    sampling = service.engine.requests[0].sampling
    assert response.status_code == 200
    assert {name: getattr(sampling, name) for name in same} == same
    assert (sampling.max_tokens, sampling.logit_bias) == (20, {7: -100.0})
    assert (sampling.repetition_guard, sampling.logprobs, sampling.grammar) == (False, None, None)


async def test_what_a_request_leaves_out_is_the_checkpoint_s_default(service, question, model):
    service.engine.model = msgspec.structs.replace(model, temperature=0.7, top_p=0.8, top_k=20)

    await service.client.post(PATH, json=question)
    await service.client.post(PATH, json=question | {"temperature": 0, "top_k": -1, "stop": None})

    default, chosen = (request.sampling for request in service.engine.requests)
    prompt = service.engine.requests[0].prompt_token_ids
    assert (default.temperature, default.top_p, default.top_k) == (0.7, 0.8, 20)
    assert default.max_tokens == model.max_model_len - len(prompt)
    assert (default.repetition_guard, default.seed) == (True, None)
    assert (chosen.temperature, chosen.top_k) == (0.0, 0)


async def test_either_name_of_the_token_limit_is_taken(service, question):
    for limits in (
        {"max_tokens": 9},
        {"max_completion_tokens": 9},
        {"max_tokens": 9, "max_completion_tokens": 9},
    ):
        response = await service.client.post(PATH, json=question | limits)
        assert response.status_code == 200

    assert [request.sampling.max_tokens for request in service.engine.requests] == [9, 9, 9]


@pytest.mark.parametrize("stop", [" circle", ["nothing", " circle"]])
async def test_stop_string_is_told_and_no_part_of_the_answer(service, question, stop):
    response = await service.client.post(PATH, json=question | {"stop": stop})

    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == "A red"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " circle")


@pytest.mark.parametrize(
    ("detail", "stop_reason"), [("max_tokens", None), ("repetition", "repetition")]
)
async def test_cut_answer_is_told_as_cut(service, question, detail, stop_reason):
    service.engine.ending = (FinishReason.LENGTH, detail)

    (choice,) = (await service.client.post(PATH, json=question)).json()["choices"]

    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", stop_reason)


async def test_several_answers_have_their_indexes(service, question):
    reply = (await service.client.post(PATH, json=question | {"n": 3})).json()

    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in reply["choices"]} == {"A red circle."}
    assert reply["usage"]["completion_tokens"] % 3 == 0


async def test_logprobs_spell_every_token(service, question):
    service.engine.pieces = ["红", "é!"]

    response = await service.client.post(
        PATH, json=question | {"logprobs": True, "top_logprobs": 2}
    )

    (choice,) = response.json()["choices"]
    told = choice["logprobs"]["content"]
    assert service.engine.requests[0].sampling.logprobs == 2
    assert choice["logprobs"]["refusal"] is None
    assert b"".join(bytes(token["bytes"]) for token in told).decode() == "红é!"
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] for token in told)
    assert set(told[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}


async def test_tool_calls_are_parted_from_the_content(service, question):
    service.engine.pieces = ["Let me see.\n", CALL[:20], CALL[20:], "\n", CALL]

    reply = await service.client.post(PATH, json=question | {"tools": [WEATHER]})

    (choice,) = reply.json()["choices"]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me see."
    assert [call["function"]["name"] for call in calls] == ["get_weather"] * 2
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Oslo"}] * 2
    assert len({call["id"] for call in calls}) == 2
    assert all(call["type"] == "function" for call in calls)


async def test_content_of_nothing_but_calls_is_null(service, question):
    service.engine.pieces = [CALL]

    reply = await service.client.post(PATH, json=question | {"tools": [WEATHER]})

    (choice,) = reply.json()["choices"]
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 1


async def test_tools_are_told_to_the_model_unless_it_may_not_call(service, question):
    service.engine.pieces = [CALL]
    await service.client.post(PATH, json=question)
    none = await service.client.post(
        PATH, json=question | {"tools": [WEATHER], "tool_choice": "none"}
    )
    await service.client.post(PATH, json=question | {"tools": [WEATHER]})

    bare, untold, told = (len(request.prompt_token_ids) for request in service.engine.requests)
    (choice,) = none.json()["choices"]
    assert bare == untold < told
    assert choice["message"]["content"] == CALL
    assert (choice["finish_reason"], "tool_calls" in choice["message"]) == ("stop", False)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
async def test_demanded_call_is_a_grammar_for_the_engine(service, question, choice):
    service.engine.pieces = [CALL]

    response = await service.client.post(
        PATH, json=question | {"tools": [WEATHER], "tool_choice": choice}
    )

    grammar = service.engine.requests[0].sampling.grammar
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert grammar is not None
    assert "get_weather" in msgspec.json.encode(grammar).decode()


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        pytest.param({"type": "text"}, None, id="text"),
        pytest.param({"type": "json_object"}, {"type": "object"}, id="json-object"),
        pytest.param(
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
            {"type": "integer"},
            id="json-schema",
        ),
        pytest.param(
            {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": {"type": "boolean"}},
            },
            {"type": "boolean"},
            id="strict-json-schema",
        ),
    ],
)
async def test_response_format_is_a_grammar_for_the_engine(
    service, question, response_format, schema
):
    await service.client.post(PATH, json=question | {"response_format": response_format})

    grammar = service.engine.requests[0].sampling.grammar
    assert (grammar and json.loads(grammar.json_schema)) == schema


async def test_reasoning_is_parted_from_the_answer(service, question):
    service.engine.pieces = ["<think>\nHm", "m.\n</think>\n\n", "A circle."]

    reply = (await service.client.post(PATH, json=question)).json()

    message = reply["choices"][0]["message"]
    counts = reply["usage"]
    assert (message["reasoning_content"], message["content"]) == ("Hmm.", "A circle.")
    assert 0 < counts["completion_tokens_details"]["reasoning_tokens"] < counts["completion_tokens"]


async def test_turns_with_calls_and_results_are_rendered(service, question):
    question["messages"] = [
        USER,
        {"role": "assistant", "content": None, "refusal": None, "audio": None,
         "function_call": None, "annotations": [], "reasoning_content": "Hm.",
         "tool_calls": [{"id": "call_1", "type": "function",
                         "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain.", "name": "get_weather"},
        {"role": "user", "content": "Thanks.", "name": "Ann"},
    ]  # fmt: skip

    response = await service.client.post(PATH, json=question)
    tokens = await service.client.post(
        "/detokenize", json={"tokens": service.engine.requests[0].prompt_token_ids}
    )

    prompt = tokens.json()["prompt"]
    assert response.status_code == 200
    assert CALL in prompt
    assert "<tool_response>\nRain.\n</tool_response>" in prompt
    assert prompt.index("Rain.") < prompt.index("Thanks.")


async def test_pictures_keep_their_places_over_turns(
    service, question, image, picture, other_picture
):
    blue = {"type": "image_url", "image_url": {"url": data_url(other_picture), "detail": "high"}}
    file = {"type": "file", "file": {"file_data": data_url(picture), "filename": "../a.png"}}
    question["messages"] = [
        {"role": "user", "content": [image, {"type": "text", "text": "and"}, blue]},
        {"role": "assistant", "content": "Two circles."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, file]},
    ]

    response = await service.client.post(PATH, json=question)

    (request,) = service.engine.requests
    first, second, third = (vision.content_hash for vision in request.visions)
    assert response.status_code == 200
    assert first == third != second


async def test_document_s_pages_are_pictures_in_their_place(service, question):
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    document = io.BytesIO()
    red.save(document, "PDF", save_all=True, append_images=[blue, red])
    encoded = base64.b64encode(document.getvalue()).decode()
    file = {"file_data": f"data:application/pdf;base64,{encoded}", "pages": "2-3"}
    question["messages"] = [{"role": "user", "content": [{"type": "file", "file": file}]}]

    response = await service.client.post(PATH, json=question)

    (request,) = service.engine.requests
    blue_page, red_page = (bytes(vision.pixels) for vision in request.visions)
    assert response.status_code == 200
    assert (blue_page[2] > 200 > blue_page[0], red_page[0] > 200 > red_page[2]) == (True, True)


async def test_picture_that_a_tool_returned_is_seen(service, question, image):
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    question["messages"] = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": [image]},
    ]

    response = await service.client.post(PATH, json=question)

    assert response.status_code == 200
    assert len(service.engine.requests[0].visions) == 1


@pytest.mark.parametrize(("detail", "grows"), [("low", False), ("high", True), ("auto", True)])
async def test_low_detail_has_fewer_pixels(service, question, model, detail, grows):
    service.engine.model = msgspec.structs.replace(model, max_pixels=4096 * 4096)
    large = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(large, "PNG")
    part = {"type": "image_url", "image_url": {"url": data_url(large.getvalue()), "detail": detail}}
    question["messages"] = [{"role": "user", "content": [part]}]

    await service.client.post(PATH, json=question | {"max_tokens": 1})

    (vision,) = service.engine.requests[0].visions
    assert (vision.height * vision.width > 512 * 512) == grows


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({"part": {"max_pixels": 2048}}, id="part"),
        pytest.param({"request": {"max_pixels": 2048}}, id="request"),
        pytest.param({"part": {"max_pixels": 2048}, "request": {"max_pixels": 16384}}, id="both"),
        pytest.param({"part": {"min_pixels": 1024}, "request": {"max_pixels": 2048}}, id="each"),
    ],
)
async def test_client_s_pixel_bounds_are_kept(service, question, image, model, bounds):
    service.engine.model = msgspec.structs.replace(model, min_pixels=1024)
    question |= bounds.get("request", {})
    question["messages"] = [{"role": "user", "content": [image | bounds.get("part", {})]}]

    response = await service.client.post(PATH, json=question)

    (vision,) = service.engine.requests[0].visions
    assert response.status_code == 200
    assert vision.height * vision.width <= 2048  # a picture of 64 x 64


async def test_fields_that_change_no_answer_are_ignored_and_named(service, question):
    ignored = {"user": "ann", "metadata": {"a": "b"}, "store": True, "safety_identifier": "x",
               "prompt_cache_key": "y", "prompt_cache_retention": "24h"}  # fmt: skip
    fixed = {"modalities": ["text"], "service_tier": "auto"}
    absent = {"functions": None, "audio": None, "temperature": None, "chat_template": None}
    question["messages"] = [
        USER | {"name": "Ann"},
        {"role": "assistant", "content": "Hm.", "annotations": [], "parsed": {"a": 1}},
        USER,
    ]

    whole = await service.client.post(PATH, json=question | ignored | fixed | absent)
    stream = await service.client.post(PATH, json=question | ignored | {"stream": True})

    for response in (whole, stream):
        named = response.headers["x-ignored-params"].split(", ")
        assert response.status_code == 200
        assert set(named) == {
            *ignored, "messages.annotations", "messages.name", "messages.parsed"
        }  # fmt: skip
