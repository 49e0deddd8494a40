"""Measure servers side by side: questions about pictures and their variants, in turns.

    python tests/load/chat_image.py                       Loupe and its engine, in three minutes
    python tests/load/chat_image.py --servers loupe,direct,recipe,litserve --seconds 10
        --peer recipe=VENV --peer litserve=VENV           the standard load
    python tests/load/chat_image.py --scenarios all       every variant

README.md beside this says what is measured, and how.
"""

import argparse
import itertools
from pathlib import Path

import machine
from report import write_report
from rounds import Measurement, Plan, Target, tell
from scenarios import SCENARIOS
from servers import ROOT, Server, server_named


def main() -> None:
    """Measure, write the report, and print its table."""
    options = _parser().parse_args()
    plan = Plan(
        levels=tuple(int(level) for level in options.concurrency.split(",")),
        rounds=options.rounds,
        seconds=options.seconds,
        rate=options.rate,
        patience=options.patience,
        model=options.model,
        output=options.output.resolve(),
    )
    names = list(SCENARIOS) if options.scenarios == "all" else options.scenarios.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise SystemExit(f"chat_image.py: no such scenario: {', '.join(unknown)}")
    scenarios = [SCENARIOS[name] for name in names]
    servers = _servers(options)
    plan.output.mkdir(parents=True, exist_ok=True)
    facts = machine.facts()
    measurement = Measurement(plan)
    try:
        if options.running:
            dialect, _, url = options.running.partition("=")
            target = Target("running", url, dialect, options.model)
            for number, scenario in itertools.product(range(plan.rounds), scenarios):
                measurement.measure(target, number, scenario)
        else:
            measurement.run(servers, scenarios)
    except KeyboardInterrupt:
        tell("stopped; the report has what was measured")
    finally:
        print(write_report(plan.output, facts, measurement))


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
    add("--concurrency", default="1,8,32")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=5, help="for which each run asks new questions")
    add("--rate", type=float, default=2, help="requests a second in `mixed`")
    add("--patience", type=float, default=300, help="seconds to wait for an answer")
    add("--model", default="mid", help="mid, mid-moe, demo, or a checkpoint's folder")
    add("--loupe-dialect", default="native", help="native or openai")
    add("--loupe-args", default="", help='further settings: "--workers 1 --thread-wait bounded"')
    add("--running", metavar="DIALECT=URL", help="measure this server, started by yourself")
    add("--output", type=Path, default=ROOT / "bench-results", help="folder for the report")
    return parser


if __name__ == "__main__":
    main()
