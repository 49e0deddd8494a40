"""The README's commands and tables are what the project really has."""

import os
import re
from pathlib import Path

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
