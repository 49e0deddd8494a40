set quiet

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

# Show this list.
default:
    just --list --unsorted

# Install everything exactly as locked; quick when nothing changed since.
setup:
    test -x .venv/bin/python || python3 -m venv .venv
    cat pyproject.toml requirements.lock | cmp -s - .venv/installed || \
        { pip install -q -r requirements.lock -e '.[dev]' && \
          cat pyproject.toml requirements.lock > .venv/installed; }

# Pin every package anew, from the ranges in pyproject.toml.
lock:
    #!/usr/bin/env bash
    set -euo pipefail
    clean=$(mktemp -d)
    trap 'rm -rf "$clean"' EXIT
    python3 -m venv "$clean"
    # torch moves by hand: the figures in the README were measured with it.
    "$clean/bin/pip" install -q '.[dev]' torch==2.13.0
    {
      echo "# Made by \`just lock\`; what torch itself needs for a GPU comes with torch, pinned by it."
      "$clean/bin/pip" freeze --exclude loupe | grep -vE '^(nvidia-|cuda-|triton)' | sed 's/+cpu$//'
    } > requirements.lock

# Everything that must pass before a commit; what CI runs.
check *args: lint types imports (test args)

# Style and mistakes; `just fix` repairs what can be repaired.
lint: setup
    ruff format --check .
    ruff check .

# Repair style.
fix: setup
    ruff check --fix .
    ruff format .

# Types.
types: setup
    pyright

# Who may import whom (contracts in pyproject.toml).
imports: setup
    lint-imports

# Tests that need no GPU and no network: `just test -k scheduler`.
test *args: setup
    pytest -m "not gpu" {{ args }}

# Tests that need a GPU and the real weights.
test-gpu *args: setup
    pytest -m gpu {{ args }}

# Run the service here: `just serve --port 9000`; settings also from the environment.
serve *args: setup
    exec loupe serve {{ args }}

# Write the list of settings into README.md and deploy/env.example.
settings: setup
    loupe settings --as env > deploy/env.example
    loupe settings --as markdown | sed -i -e '/^<!-- settings -->$/,/^<!-- end of settings -->$/{//!d}' \
        -e '/^<!-- settings -->$/r /dev/stdin' README.md

# Measure speed, in three minutes; `just bench --help` for peers and variants.
bench *args: setup
    python tests/load/chat_image.py {{ args }}

# Train the demo model from scratch, with a fixed seed.
train-demo *args: setup
    python -m inference.demo.train {{ args }}

# Print the demo model's accuracy table on held-out seeds.
evaluate-demo *args: setup
    python -m inference.demo.evaluate {{ args }}
