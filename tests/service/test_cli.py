import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.command_parser import COMMANDS, SHELLS
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
    assert all(f"\n  {name} " in told.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command):
    told = loupe(command, "--help")

    assert told.returncode == 0
    assert f"\n  loupe {command}" in told.stdout


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
        pytest.param(["sevre"], {}, ["sevre", "did you mean serve?"], id="unknown-command"),
        pytest.param(["quux"], {}, ["no command quux", "--help"], id="command-like-none"),
        pytest.param(["bench", "--second", "1"], {}, ["--seconds?"], id="flag-of-its-own-command"),
        pytest.param(["serve"], {"LOUPE_API_KEY": "k"}, ["LOUPE_API_KEYS"], id="a-client's-key"),
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
    assert "mend the problems" in told.stdout


def test_check_explains_settings_model_memory_and_threads():
    told = loupe("check", "--port", "0", "--max-num-seqs", "8", OMP_NUM_THREADS="1")

    assert told.returncode == 0, told.stdout + told.stderr
    assert "max_num_seqs               8  (flag)" in told.stdout
    assert "OMP_NUM_THREADS=1, as set" in told.stdout
    assert all(title in told.stdout for title in ("model:", "memory:", "processes:"))
    assert told.stdout.endswith(
        "problems:\n  none\n\nnext:\n  loupe serve --port 0 --max-num-seqs 8\n"
    )


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


def test_a_clients_variables_are_no_settings():
    told = loupe("check", "--model", "/no/such", "--port", "0", LOUPE_URL="http://127.0.0.1:1")

    assert told.returncode == 1, told.stderr
    assert "unknown setting" not in told.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_flags_and_choices(shell):
    told = loupe("completion", shell)

    assert told.returncode == 0, told.stderr
    for word in ("serve", "completion", "max-model-len", "api-key-file", "any-length", "warning"):
        assert word in told.stdout


def test_bash_completes_flags_and_settings_words():
    script = loupe("completion", "bash").stdout
    asking = """
complete() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $function; \
    echo "${COMPREPLY[@]}"; }
"""
    function = re.search(r"^complete .*-F (\S+) loupe$", script, re.MULTILINE)
    assert function is not None
    script = script.replace(function[0], "")
    lines = ["loupe ser", "loupe serve --max-model-l", "loupe serve --log-level w"]
    told = subprocess.run(
        ["bash", "-c", "\n".join([script, f"function={function[1]}", asking,
                                  *(f"complete {line}" for line in lines)])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip

    assert told.stdout.split() == ["serve", "--max-model-len", "warning"], told.stderr
