"""The README's commands, files and settings are those the project really has."""

import os
import re
from pathlib import Path

import pytest

from service.options import render_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _commands_of_the_readme() -> list[str]:
    block = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


def test_ci_runs_the_readmes_second_command():
    serve, check = _commands_of_the_readme()

    assert serve.endswith("/just serve")
    assert check in (ROOT / ".ci/run").read_text().splitlines()
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_readme_installs_the_locked_just():
    locked = re.search(r"^rust-just==\S+$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    assert locked is not None
    assert all(f" {locked.group()} " in command for command in _commands_of_the_readme())


def test_the_readme_lists_every_setting():
    """After a change of the settings, `just settings` writes the table anew."""
    table = re.search(r"<!-- settings -->\n(.*)<!-- end of settings -->", README, re.DOTALL)

    assert table is not None
    assert render_markdown() == table.group(1)


def _named_files() -> list[str]:
    links = re.findall(r"\]\(([^):#]+)\)", README)
    rows = re.findall(r"^\| (`(?:service|inference)/[^|]*) \|", README, re.MULTILINE)
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        links += [first, *(str(Path(first).parent / other) for other in others)]
    return links


@pytest.mark.parametrize("path", _named_files())
def test_the_files_the_readme_names_exist(path: str):
    assert (ROOT / path).exists()
