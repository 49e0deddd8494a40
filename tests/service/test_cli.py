import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.options import options

ROOT = Path(__file__).parents[2]


def loupe(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("LOUPE_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        check=False,
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_the_commands():
    told = loupe("--help")

    assert told.returncode == 0
    assert all(name in told.stdout for name in ("serve", "check", "settings", "version"))


def test_help_of_serve_lists_every_setting():
    told = loupe("serve", "--help", COLUMNS="200")

    assert [option.flag for option in options().values() if option.flag not in told.stdout] == []


def test_version_names_the_service():
    told = loupe("version")

    assert told.returncode == 0
    assert told.stdout.startswith("loupe ")


def test_settings_prints_the_example_environment_file():
    assert loupe("settings").stdout == (ROOT / "deploy/env.example").read_text()


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        pytest.param([], {}, ["COMMAND"], id="no-command"),
        pytest.param(["sevre"], {}, ["sevre", "serve"], id="unknown-command"),
        pytest.param(
            ["serve", "--max-modellen", "1"], {}, ["--max-modellen", "--max-model-len?"], id="flag"
        ),
        pytest.param(["serve", "--max-model", "1"], {}, ["--max-model"], id="no-abbreviations"),
        pytest.param(["serve", "--port", "http"], {}, ["--port"], id="bad-value"),
        pytest.param(
            ["check"], {"LOUPE_WORKER": "1"}, ["LOUPE_WORKER", "LOUPE_WORKERS?"], id="env"
        ),
        pytest.param(["serve", "--config", "/no/such"], {}, ["/no/such"], id="no-such-file"),
    ],
)
def test_a_mistake_ends_with_status_2_and_names_what_was_wrong(arguments, environ, words):
    told = loupe(*arguments, **environ)

    assert told.returncode == 2
    assert all(word in told.stderr for word in words)
    assert "Traceback" not in told.stderr


def test_check_reports_a_missing_model_and_ends_with_status_1():
    told = loupe("check", "--model", "/no/such/model", "--port", "0")

    assert told.returncode == 1
    assert "/no/such/model" in told.stdout
    assert "problems:" in told.stdout


def test_check_explains_settings_model_memory_and_threads():
    told = loupe("check", "--port", "0", "--max-num-seqs", "8", OMP_NUM_THREADS="1")

    assert told.returncode == 0, told.stdout + told.stderr
    assert "max_num_seqs               8  (flag)" in told.stdout
    assert "OMP_NUM_THREADS=1, as set" in told.stdout
    assert all(title in told.stdout for title in ("model:", "memory:", "processes:"))
    assert told.stdout.endswith("problems:\n  none\n")


def test_a_key_is_printed_once_and_only_its_hash_is_kept(tmp_path):
    file = tmp_path / "keys.toml"
    told = loupe("keys", "add", "alice", "--admin", LOUPE_API_KEYS=str(file))
    again = loupe("keys", "add", "bob", "--tenant", "team-a", "--api-keys", str(file))

    keys = [told.stdout.strip(), again.stdout.strip()]
    assert (told.returncode, again.returncode) == (0, 0)
    assert all(key.startswith("loupe_") and "\n" not in key for key in keys)
    assert file.read_text().count("[[keys]]") == 2
    assert not any(key in file.read_text() + told.stderr + again.stderr for key in keys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["keys"], ["ACTION"], id="no-action"),
        pytest.param(["keys", "add", "alice"], ["--api-keys", "LOUPE_API_KEYS"], id="no-file"),
        pytest.param(["keys", "add", "a b", "--api-keys", "x"], ["name"], id="bad-name"),
        pytest.param(["serve", "--api-keys", "/no/such"], ["/no/such"], id="serve-without-it"),
        pytest.param(
            ["serve", "--cors-origins", "*"], ["--cors-origins"], id="every-origin-is-none"
        ),
    ],
)
def test_a_mistake_about_keys_ends_with_status_2(arguments, words):
    told = loupe(*arguments)

    assert told.returncode == 2
    assert all(word in told.stderr for word in words)
    assert "Traceback" not in told.stderr
