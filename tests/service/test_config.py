import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import EngineConfig
from service.config import Settings
from service.media.budget import MediaLimits
from service.options import SettingsError, options, render_env_example, render_markdown, resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "loupe.toml"
        path.write_text(text)
        return str(path)

    return write


def test_without_any_source_every_setting_has_its_default():
    resolved = resolve({}, {})

    assert resolved.settings == Settings()
    assert set(resolved.sources.values()) == {"default"}


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(settings_file):
    file = settings_file("max_model_len = 1\nmax_num_seqs = 1\nport = 1\n")
    environ = {"LOUPE_MAX_MODEL_LEN": "2", "LOUPE_MAX_NUM_SEQS": "2", "LOUPE_CONFIG": file}
    flags = {"max_model_len": "3"}

    settings, sources = resolve(flags, environ)

    assert (settings.engine.max_model_len, sources["max_model_len"]) == (3, "flag")
    assert (settings.engine.max_num_seqs, sources["max_num_seqs"]) == (2, "environment")
    assert (settings.port, sources["port"]) == (1, "file")
    assert (settings.host, sources["host"]) == ("127.0.0.1", "default")


def test_the_file_named_by_the_flag_goes_before_the_one_in_the_environment(settings_file):
    file = settings_file("port = 7\n")

    settings, _ = resolve({"config": file}, {"LOUPE_CONFIG": "/no/such/file"})

    assert settings.port == 7


def test_every_group_of_settings_is_reached(settings_file):
    file = settings_file('formats = ["png"]\noffline = true\ndrain_seconds = 1\n')

    settings, _ = resolve({"config": file}, {"LOUPE_MAX_IMAGES": "2"})

    assert settings.media == MediaLimits(formats=("png",), max_images=2)
    assert settings.engine == EngineConfig(offline=True)
    assert settings.drain_seconds == 1.0


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        pytest.param("LOUPE_OFFLINE", "true", "offline", True, id="bool"),
        pytest.param("LOUPE_OFFLINE", "0", "offline", False, id="bool-digit"),
        pytest.param(
            "LOUPE_GPU_MEMORY_UTILIZATION", "0.5", "gpu_memory_utilization", 0.5, id="float"
        ),
        pytest.param("LOUPE_DEVICE", "cuda:1", "device", "cuda:1", id="device"),
        pytest.param("LOUPE_MODEL", "123", "model", "123", id="text-of-digits"),
        pytest.param("LOUPE_MAX_PIXELS", "", "max_pixels", None, id="empty-is-unset"),
    ],
)
def test_variables_are_read_as_their_setting_needs(variable, text, name, value):
    settings, _ = resolve({}, {variable: text})

    assert getattr(settings.engine, name) == value


def test_a_list_is_written_with_commas():
    settings, _ = resolve({"formats": "jpeg, png"}, {})

    assert settings.media.formats == ("jpeg", "png")


def test_variables_of_others_are_ignored():
    assert resolve({}, {"PATH": "/bin", "XLOUPE_PORT": "1"}).settings == Settings()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({"LOUPE_PORTT": "1"}, ["LOUPE_PORTT", "LOUPE_PORT?"], id="misspelt"),
        pytest.param({"LOUPE_XYZZY": "1"}, ["LOUPE_XYZZY", "unknown"], id="unknown"),
        pytest.param({"LOUPE_PORT": "many"}, ["LOUPE_PORT", "int"], id="no-number"),
        pytest.param({"LOUPE_PORT": "65536"}, ["LOUPE_PORT", "65535"], id="out-of-range"),
        pytest.param({"LOUPE_MAX_NUM_SEQS": "0"}, ["LOUPE_MAX_NUM_SEQS", "1"], id="zero"),
        pytest.param({"LOUPE_DTYPE": "int3"}, ["LOUPE_DTYPE", "bfloat16"], id="no-such-choice"),
        pytest.param({"LOUPE_DEVICE": "tpu"}, ["LOUPE_DEVICE"], id="no-such-device"),
        pytest.param({"LOUPE_FORMATS": "png,xcf"}, ["LOUPE_FORMATS", "webp"], id="no-such-part"),
        pytest.param({"LOUPE_MAX_IMAGES": "0"}, ["LOUPE_MAX_IMAGES"], id="no-images"),
        pytest.param({"LOUPE_DRAIN_SECONDS": "-1"}, ["LOUPE_DRAIN_SECONDS"], id="negative"),
        pytest.param(
            {"LOUPE_PORT": "tcp://10.0.0.1:8000"}, ["enableServiceLinks"], id="service-link-port"
        ),
        pytest.param(
            {"LOUPE_SERVICE_HOST": "10.0.0.1"}, ["enableServiceLinks"], id="service-link-host"
        ),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(environ, words):
    with pytest.raises(SettingsError) as refusal:
        resolve({}, environ)

    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("max_model_length = 1", ["max_model_length", "max_model_len?"], id="misspelt"),
        pytest.param('port = "8000"', ["port", "int"], id="text-for-a-number"),
        pytest.param("[engine]\nmodel = 'x'", ["engine", "unknown"], id="table"),
        pytest.param("port = = 3", ["loupe.toml"], id="no-toml"),
        pytest.param("workers = 0", ["workers"], id="out-of-range"),
    ],
)
def test_a_bad_line_of_the_file_is_refused_by_its_name(settings_file, text, words):
    with pytest.raises(SettingsError) as refusal:
        resolve({"config": settings_file(text)}, {})

    assert all(word in str(refusal.value) for word in words)


def test_a_missing_settings_file_is_refused():
    with pytest.raises(SettingsError, match="/no/such/file"):
        resolve({"config": "/no/such/file"}, {})


def test_every_setting_is_explained():
    assert [option.name for option in options().values() if not option.help] == []


def test_every_default_keeps_to_its_own_bounds():
    assert msgspec.convert(msgspec.to_builtins(Settings()), Settings) == Settings()


@given(st.sampled_from(sorted(options())))
def test_every_default_can_be_written_as_a_variable(name):
    option = options()[name]

    assert resolve({}, {option.variable: option.default_text}).settings == Settings()


def test_the_example_environment_file_is_current():
    assert (ROOT / "deploy/env.example").read_text() == render_env_example()


def test_the_markdown_table_has_a_row_for_every_setting():
    rows = render_markdown().splitlines()[2:]

    assert [row.split("`")[1] for row in rows] == [option.flag for option in options().values()]


def test_reading_the_settings_loads_neither_the_web_stack_nor_the_model():
    heavy = "torch,transformers,litestar,uvicorn,PIL,tokenizers,numpy"
    program = (
        "import service.cli, sys;"
        f"print([name for name in '{heavy}'.split(',') if name in sys.modules])"
    )

    loaded = subprocess.check_output(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )

    assert loaded.strip() == "[]"
