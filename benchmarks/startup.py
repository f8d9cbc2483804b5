"""How long a command takes before it does any work: processor time and memory of helps, imports and small answers.

    make demo
    python benchmarks/startup.py [--store demo/runs] [--study demo] [--rounds 7]

Each side is a process of its own: `import typer, rich`, which any command line with our libraries pays and which is the
yardstick; `import overtone`; `--help` of the command line and of each of its commands; `status` and `query --front` of
the demo's study. Sides take turns within a round, after runs that are not counted and that leave compiled modules, as
an installation does. A side that fails is named and left out.

Processor time (user and system) and peak memory are those that the system notes of the ended process. A small process
starts each: the peak of one that this script started would begin at this script's own size. The aims are twice the
yardstick for a help, and 1.5 s for `status` and `query`. Writes `startup.parquet` and `startup.md`.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import typer
from turns import machine, take_turns

from search.commands.cli import app

_YARDSTICK = ["python", "-c", "import typer, rich"]
_HELP_AIM = 2.0
"""Times the yardstick."""
_ANSWER_AIM_S = 1.5

_STARTER = """
import json, os, sys, time
quiet = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
start = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[quiet])
_, status, used = os.wait4(process, 0)
print(json.dumps({
    "code": os.waitstatus_to_exitcode(status), "wall_s": time.perf_counter() - start,
    "processor_s": used.ru_utime + used.ru_stime, "peak_bytes": 1024 * used.ru_maxrss,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("demo/runs"))
    parser.add_argument("--study", default="demo")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    _write(_measure(list(_works(_commands(arguments.store, arguments.study))), arguments.rounds), arguments.out)


def _commands(store: Path, study: str) -> list[list[str]]:
    """Return the commands as a person would write them, the yardstick first."""
    commands = [_YARDSTICK, ["python", "-c", "import overtone"], ["overtone", "--help"]]
    commands += [["overtone", *names, "--help"] for names in _names(typer.main.get_group(app))]
    if store.is_dir():
        place = ["--store", str(store)]
        commands += [["overtone", "status", "--study", study, *place]]
        commands += [["overtone", "query", "--study", study, "--front", *place]]
    else:
        print(f"there is no {store}: run `make demo` first to have status and query measured too")
    return commands


def _names(group: Any) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        yield from ([name, *names] for names in _names(command)) if hasattr(command, "commands") else [[name]]


def _works(commands: list[list[str]]) -> Iterator[list[str]]:
    """Name the commands that fail, and yield the others."""
    for command in commands:
        try:
            _run(command)
        except subprocess.SubprocessError as error:
            print(f"left out, as it fails: {shlex.join(command)}: {error}")
        else:
            yield command


def _run(command: list[str]) -> dict[str, Any]:
    """Run a command to its end and return what it took; raise `SubprocessError` if it fails."""
    script = Path(sys.executable).with_name("overtone")
    overtone = [str(script)] if script.exists() else [sys.executable, "-m", "search"]
    started = {"python": [sys.executable], "overtone": overtone}[command[0]]
    starter = [sys.executable, "-I", "-S", "-c", _STARTER]
    done = subprocess.run([*starter, *started, *command[1:]], capture_output=True, text=True, check=True)
    taken: dict[str, Any] = json.loads(done.stdout)
    if taken.pop("code"):
        raise subprocess.SubprocessError(" ".join(done.stderr.splitlines()[-1:]))
    return taken


def _measure(commands: list[list[str]], rounds: int) -> pd.DataFrame:
    """One row a command and round."""
    taken: dict[str, dict[str, Any]] = {}

    def note(command: list[str]) -> None:
        taken[shlex.join(command)] = _run(command)

    about = {**machine(torch.device("cpu")), "python": platform.python_version()}
    about |= {name: version(name) for name in ("typer", "rich")}
    rows = []
    for side, timing in take_turns({shlex.join(command): partial(note, command) for command in commands}, rounds):
        rows.append({"command": side, "round": timing["round"], **taken[side], "load": timing["load"], **about})
        print(f"round {timing['round'] + 1}, {side}: {taken[side]['processor_s']:.2f} s", flush=True)
    return pd.DataFrame(rows)


def _write(rows: pd.DataFrame, out: Path) -> None:
    rows.to_parquet(out / "startup.parquet", index=False)
    text = _markdown(rows)
    (out / "startup.md").write_text(text)
    print(text)


def _markdown(rows: pd.DataFrame) -> str:
    first, rounds = rows.iloc[0], rows["round"].max() + 1
    lines = [
        "# Start-up of the command line",
        "",
        f"{first.device}, Python {first.python}, typer {first.typer}, rich {first.rich}, torch {first.torch}, "
        f"n = {rounds} rounds, load average {rows.load.min():.1f} to {rows.load.max():.1f}; medians (and ranges) of "
        "processor time, and of its ratio to the yardstick's in the same round.",
        f"Aims: {_HELP_AIM:.0f} times the yardstick for a help, {_ANSWER_AIM_S} s for `status` and `query`.",
        "",
        "| command | processor s | of the yardstick | peak MB | aim |",
        "|---|---|---|---|---|",
    ]
    seconds = rows.pivot(index="round", columns="command", values="processor_s")
    for command, same in rows.groupby("command", sort=False):
        ratios = seconds[command] / seconds[shlex.join(_YARDSTICK)]
        lines.append(
            f"| `{command}` | {_range(same.processor_s)} | {_range(ratios)} | {same.peak_bytes.median() / 1e6:.0f} | "
            f"{_aim(str(command), same.processor_s.median(), ratios.median())} |"
        )
    return "\n".join([*lines, ""])


def _range(values: pd.Series) -> str:
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


def _aim(command: str, seconds: float, ratio: float) -> str:
    if command.endswith("--help"):
        return "met" if ratio <= _HELP_AIM else "missed"
    if command.startswith(("overtone status ", "overtone query ")):
        return "met" if seconds <= _ANSWER_AIM_S else "missed"
    return ""


if __name__ == "__main__":
    main()
