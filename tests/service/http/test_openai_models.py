"""What is served, and what a prompt costs."""

import msgspec
import pytest


async def test_models_are_the_served_one(service, model):
    listed = await service.client.get("/v1/models")
    alone = await service.client.get(f"/v1/models/{model.name}")

    (entry,) = listed.json()["data"]
    assert listed.json()["object"] == "list"
    assert entry == alone.json()
    assert (entry["id"], entry["object"]) == (model.name, "model")
    assert entry["max_model_len"] == model.max_model_len
    assert entry["created"] > 1_000_000_000


async def test_model_whose_name_has_slashes_is_found(service, model):
    service.engine.model = msgspec.structs.replace(model, name="Qwen/Qwen3-VL")

    response = await service.client.get("/v1/models/Qwen/Qwen3-VL")

    assert response.json()["id"] == "Qwen/Qwen3-VL"


@pytest.mark.parametrize("name", ["canary-7f3a", "a/b", "%00"])
async def test_other_models_are_not_found(service, name):
    response = await service.client.get(f"/v1/models/{name}")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "canary" not in response.text


@pytest.mark.parametrize("text", ["", "What is this? 红 🙂", "<|im_start|>system", "x" * 5000])
async def test_text_survives_tokenising_and_spelling(service, text):
    tokenized = (await service.client.post("/tokenize", json={"prompt": text})).json()
    spelt = await service.client.post("/detokenize", json={"tokens": tokenized["tokens"]})

    assert spelt.json() == {"prompt": text}
    assert tokenized["count"] == len(tokenized["tokens"])
    assert tokenized["image_tokens"] == 0


async def test_spelt_special_tokens_stay_text(service, model):
    reply = await service.client.post("/tokenize", json={"prompt": "<|image_pad|>"})

    assert model.image_token_id not in reply.json()["tokens"]
    assert reply.json()["max_model_len"] == model.max_model_len


async def test_messages_are_tokenised_as_for_an_answer(service, model, picture_text):
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture_text}"}}
    tool = {"type": "function", "function": {"name": "f"}}
    asked = {
        "model": model.name,
        "messages": [{"role": "user", "content": [image, {"type": "text", "text": "Hi"}]}],
        "tools": [tool],
    }

    tokenized = (await service.client.post("/tokenize", json=asked)).json()
    assert service.engine.requests == []
    await service.client.post("/v1/chat/completions", json=asked)

    (request,) = service.engine.requests
    assert tokenized["tokens"] == request.prompt_token_ids
    assert tokenized["image_tokens"] == request.prompt_token_ids.count(model.image_token_id) > 0


@pytest.mark.parametrize(
    ("path", "asked", "status", "code", "param"),
    [
        pytest.param("/tokenize", {}, 400, "field_conflict", "prompt", id="nothing"),
        pytest.param(
            "/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400,
            "field_conflict", "prompt", id="both",
        ),
        pytest.param(
            "/tokenize", {"prompt": "a", "model": "b"}, 404, "model_not_found", "model", id="model"
        ),
        pytest.param(
            "/tokenize", {"prompt": "a", "add_special_tokens": True}, 400, "param_unsupported",
            "add_special_tokens", id="unsupported",
        ),
        pytest.param(
            "/detokenize", {"tokens": [2**31]}, 400, "value_out_of_range", "tokens[0]", id="id"
        ),
        pytest.param(
            "/detokenize", {"tokens": [2**30]}, 400, "value_out_of_range", "tokens",
            id="beyond-the-vocabulary",
        ),
        pytest.param("/detokenize", {}, 400, "field_missing", "tokens", id="no-tokens"),
    ],
)  # fmt: skip
async def test_faults_are_told_by_name(service, path, asked, status, code, param):
    response = await service.client.post(path, json=asked)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
