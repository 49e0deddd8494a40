import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from inference.checkpoint import (
    DEMO_FOLDER,
    model_facts,
    resolve_checkpoint,
    served_name,
)
from inference.checkpoint_json import CheckpointError, read_architecture
from inference.config import EngineConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_NAME = "someone/small-model"


def ignore(stage: str) -> None:
    pass


@pytest.fixture
def complete_folder(checkpoint_files, write_checkpoint) -> Path:
    return write_checkpoint(checkpoint_files)


def test_a_complete_local_folder_is_taken_as_it_is(complete_folder):
    assert resolve_checkpoint(EngineConfig(model=str(complete_folder)), ignore) == complete_folder


def test_demo_names_the_embedded_folder():
    assert resolve_checkpoint(EngineConfig(), ignore) == DEMO_FOLDER


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", r"config\.json"),
        ("tokenizer.json", r"tokenizer\.json"),
        ("chat_template.jinja", r"a chat template \(chat_template\.jinja\)"),
        ("model.safetensors", r"weights \(model\.safetensors\)"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_with_its_name(complete_folder, file, named):
    (complete_folder / file).unlink()

    with pytest.raises(CheckpointError, match=f"lacks {named}$"):
        resolve_checkpoint(EngineConfig(model=str(complete_folder)), ignore, with_weights=False)


def test_a_template_inside_the_tokenizer_config_is_enough(complete_folder):
    (complete_folder / "chat_template.jinja").unlink()
    (complete_folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')

    assert resolve_checkpoint(EngineConfig(model=str(complete_folder)), ignore) == complete_folder


def test_a_missing_weight_file_of_several_is_named(complete_folder):
    (complete_folder / "model.safetensors").rename(complete_folder / "model-1.safetensors")
    (complete_folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )

    with pytest.raises(CheckpointError, match=r"lacks model-2\.safetensors$"):
        resolve_checkpoint(EngineConfig(model=str(complete_folder)), ignore)


@pytest.mark.parametrize("model", ["/no/such/folder", "./folder", "~/no/such/folder", "a/b/c"])
def test_a_path_to_nothing_is_never_asked_of_the_hub(model):
    with pytest.raises(CheckpointError, match="there is no model folder"):
        resolve_checkpoint(EngineConfig(model=model), ignore)


class Hub:
    """A hub on the loopback: one repository's files, or one answer to every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.fetched: set[str] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base names it
        """Tests keep the terminal clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if self.hub.refusal is not None:
            status, code = self.hub.refusal
            self.answer(status, b"", {"X-Error-Code": code})
        elif "/tree/" in path:
            self.answer_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": name}
                    for name, content in self.hub.files.items()
                ]
            )
        elif path.startswith("/api/models/"):
            self.answer_json({"id": HUB_NAME, "sha": COMMIT, "siblings": []})
        elif name in self.hub.files:
            self.hub.fetched.add(name)
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self.answer(200, self.hub.files[name], headers)
        else:  # the client asks for lists of its own, too
            self.answer(404, b"", {})

    def answer_json(self, content: object) -> None:
        body = msgspec.json.encode(content)
        self.answer(200, body, {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path, monkeypatch, complete_folder) -> Iterator[Hub]:
    """The hub's client talks to a server of our own and keeps its cache in tmp_path."""
    from huggingface_hub import constants

    hub = Hub()
    handler = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.files = {path.name: path.read_bytes() for path in complete_folder.iterdir()}
    hub.files |= {"pytorch_model.bin": b"never", "README.md": b"never"}
    point_client_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def point_client_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_hub_model_is_fetched_without_what_is_not_needed_and_then_found_offline(hub, capfd):
    stages: list[str] = []

    folder = resolve_checkpoint(EngineConfig(model=HUB_NAME), stages.append)
    again = resolve_checkpoint(EngineConfig(model=HUB_NAME, offline=True), stages.append)

    assert folder == again
    assert hub.fetched == hub.files.keys() - {"pytorch_model.bin", "README.md"}
    assert "Fetching" not in capfd.readouterr().err
    assert stages == [f"looking up {HUB_NAME} on the hub"]


def test_judging_a_hub_model_fetches_no_weights(hub):
    config = EngineConfig(model=HUB_NAME)

    folder = resolve_checkpoint(config, ignore, with_weights=False)

    assert read_architecture(folder).model_type == "qwen3_vl"
    assert "model.safetensors" not in hub.fetched
    with pytest.raises(CheckpointError, match="only partly in the local cache"):
        resolve_checkpoint(msgspec.structs.replace(config, offline=True), ignore)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, "RepoNotFound", "no model someone/small-model on the hub"),
        (403, "GatedRepo", "accept its terms.*HF_TOKEN"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (500, "", "the hub cannot be reached"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(hub, status, code, advice):
    hub.refusal = (status, code)

    with pytest.raises(CheckpointError, match=advice):
        resolve_checkpoint(EngineConfig(model=HUB_NAME, revision="v9"), ignore)


def test_a_model_that_is_not_cached_cannot_be_had_offline(hub):
    with pytest.raises(CheckpointError, match="start once without offline"):
        resolve_checkpoint(EngineConfig(model=HUB_NAME, offline=True), ignore)
    assert not hub.fetched


def test_without_a_network_the_way_out_is_named(hub, monkeypatch):
    point_client_at("http://127.0.0.1:1", monkeypatch)

    with pytest.raises(CheckpointError, match="check the network"):
        resolve_checkpoint(EngineConfig(model=HUB_NAME), ignore)


def test_a_name_that_no_hub_has_is_refused():
    with pytest.raises(CheckpointError, match="looks like Qwen/"):
        resolve_checkpoint(EngineConfig(model="not a name"), ignore)


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        pytest.param({}, (65536, 4 * 1024 * 1024), id="cut-to-4-megapixels"),
        pytest.param({"max_pixels": 16777216}, (65536, 16777216), id="asked-for"),
        pytest.param({"max_pixels": 4096}, (4096, 4096), id="lower-bound-follows"),
        pytest.param({"min_pixels": 131072}, (131072, 4 * 1024 * 1024), id="raised"),
    ],
)
def test_picture_bounds_obey_the_servers_caps(complete_folder, settings, bounds):
    config = EngineConfig(model=str(complete_folder), **settings)

    facts = model_facts(read_architecture(complete_folder), config, complete_folder)

    assert (facts.min_pixels, facts.max_pixels) == bounds


def test_picture_bounds_that_leave_no_picture_are_refused(complete_folder):
    config = EngineConfig(model=str(complete_folder), min_pixels=8192, max_pixels=4096)

    with pytest.raises(CheckpointError, match="leaves no picture"):
        model_facts(read_architecture(complete_folder), config, complete_folder)


@pytest.mark.parametrize(("asked", "allowed"), [(None, 4096), (512, 512), (99999, 4096)])
def test_a_request_is_never_longer_than_the_model_allows(complete_folder, asked, allowed):
    config = EngineConfig(model=str(complete_folder), max_model_len=asked)

    facts = model_facts(read_architecture(complete_folder), config, complete_folder)

    assert facts.max_model_len == allowed
    assert (facts.name, facts.dtype) == ("small-model", "bfloat16")
    assert facts.eos_token_ids == [305, 300]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "demo"),
        ({"model": "Qwen/Qwen3-VL-2B-Instruct"}, "Qwen3-VL-2B-Instruct"),
        ({"model": "/models/mine/"}, "mine"),
        ({"model": "/models/mine", "served_model_name": "ours"}, "ours"),
    ],
)
def test_clients_call_the_model_by_the_last_part_of_its_name(settings, name):
    assert served_name(EngineConfig(**settings)) == name
