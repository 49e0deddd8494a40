"""Measure servers side by side: questions about pictures and their variants, in turns.

    python tests/load/chat_image.py                       Loupe and its engine, in three minutes
    python tests/load/chat_image.py --servers loupe,direct,recipe,litserve --seconds 10
        --peer recipe=VENV --peer litserve=VENV           the standard load
    python tests/load/chat_image.py --scenarios all       every variant

README.md beside this says what is measured, and how.
"""

import argparse
from pathlib import Path

from checkout import ROOT, commit, program_line
from servers import Server, server_named
from turns import Turns, describe, memory_table

from service.load import machine
from service.load.report import Surroundings, write_report
from service.load.rounds import Measurement, Plan, tell
from service.load.scenarios import SCENARIOS


def main() -> None:
    """Measure, write the report, and print its table."""
    options = _parser().parse_args()
    levels = options.concurrency.split(",") if options.concurrency else []
    plan = Plan(
        levels=tuple(int(level) for level in levels),
        rounds=options.rounds,
        seconds=options.seconds,
        rate=options.rate,
        patience=options.patience,
    )
    names = list(SCENARIOS) if options.scenarios == "all" else options.scenarios.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise SystemExit(f"chat_image.py: no such scenario: {', '.join(unknown)}")
    scenarios = [SCENARIOS[name] for name in names]
    servers = _servers(options)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    facts = machine.facts({"commit": commit()}, program_line())
    measurement = Measurement(plan)
    turns = Turns(measurement, options.model, output)
    try:
        turns.run(servers, scenarios)
    except KeyboardInterrupt:
        tell("stopped; the report has what was measured")
    finally:
        around = Surroundings(
            facts, describe(turns), memory_table(turns), {"servers": turns.servers}
        )
        print(write_report(output, around, measurement.results))


def _servers(options: argparse.Namespace) -> list[Server]:
    venvs = {}
    for pair in options.peer:
        name, _, folder = pair.partition("=")
        venvs[name] = Path(folder).absolute()
    try:
        return [
            server_named(name, venvs, options.loupe_dialect, options.loupe_args)
            for name in options.servers.split(",")
        ]
    except LookupError as error:
        raise SystemExit(f"chat_image.py: {error.args[0]}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--servers", default="loupe,direct", help="loupe, direct (the engine without HTTP), "
        "null (what the load generator carries), recipe, litserve, transformers, vllm")  # fmt: skip
    add("--peer", action="append", default=[], metavar="NAME=VENV",
        help="a peer's environment")  # fmt: skip
    add("--scenarios", default="chat-image", help=f"all, or of: {', '.join(SCENARIOS)}")
    add("--concurrency", default="", help="default: each scenario's own")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=5, help="for which each run asks new questions")
    add("--rate", type=float, default=2, help="requests a second in `mixed`")
    add("--patience", type=float, default=300, help="seconds to wait for an answer")
    add("--model", default="mid", help="mid, mid-moe, demo, or a checkpoint's folder")
    add("--loupe-dialect", default="loupe", help="loupe (openai and no guard) or native")
    add("--loupe-args", default="", help='further settings: "--workers 1 --thread-wait bounded"')
    add("--output", type=Path, default=ROOT / "bench-results", help="folder for the report")
    return parser


if __name__ == "__main__":
    main()
