"""What the host costs beside the device: a pretended device answers every step after exactly so many milliseconds.

    python scripts/bench_host.py [--steps-ms 5,1] [--streams 1,64,256] [--seconds 4] [--only offline,gRPC,HTTP,schedule]
                                 [--plot FILE.png] [--json FILE]

256 rows run. `offline` is LLM.generate; over gRPC and HTTP so many of the rows are read as they come, by clients in
another process, and the others as whole answers. Printed for each: the engine's rate as a share of the ideal (rows over
the step's time; bars 97 % at 5 ms, 85 % at 1 ms), the share of the time in which the engine's thread was ready and had
no core (which is other work's, the clients' included), the share of the ideal that the reading clients got, tokens in a
message, and processor time: microseconds of the engine's thread a step, by part, and of the server's process a token.

`schedule` is what planning takes for 16 to 1,024 running rows, and with up to 100,000 waiting requests: linear in the
first, the same for all of the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from host import planning
from host.counters import PARTS, Counters
from host.device import HostOptions
from host.started import ROOT, HostServer
from rich.console import Console
from rich.table import Table
from stalls import model

ROWS = 256
BARS = {5.0: 0.97, 1.0: 0.85}
WARM_SECONDS = 1.0
_START_SECONDS = 90.0


def measure(counters: Counters, rows: int, step_seconds: float, seconds: float, server: HostServer | None) -> Any:
    """Over a window in which all rows run. Raises SystemExit when they never do."""
    deadline = time.monotonic() + _START_SECONDS
    while counters["last_rows"] < rows:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {counters['last_rows']:.0f} of {rows} rows run")
        time.sleep(0.05)
    time.sleep(WARM_SECONDS)
    before, cpu = counters.read(), server.cpu_seconds() if server is not None else 0.0
    time.sleep(seconds)
    after, cpu = counters.read(), server.cpu_seconds() - cpu if server is not None else 0.0
    if after["last_rows"] < rows:
        raise SystemExit("the answers ended within the window; ask for more tokens")
    took = {name: after[name] - before[name] for name in after}
    ideal = took["time"] / step_seconds
    return {
        "share": took["rows"] / rows / ideal,
        "no_core": took["waited"] / took["time"],
        "delivered": took["tokens"] / took["time"],
        "tokens_a_message": took["tokens"] / max(1.0, took["replies"]),
        "server_us_a_token": 1e6 * cpu / took["rows"],
        **{f"{part}_us": 1e6 * took[part] / max(1.0, took["steps"]) for part in PARTS},
    }


def tokens_for(step_seconds: float, seconds: float) -> int:
    """More than a window needs, at the ideal rate."""
    return int((seconds + WARM_SECONDS + 15) / step_seconds)


def offline(folder: Path, options: HostOptions, seconds: float) -> dict[str, Any]:
    tokens = tokens_for(options.step_seconds, seconds)
    command = [sys.executable, "-m", "scripts.host.offline", json.dumps(dataclasses.asdict(options))]
    process = subprocess.Popen([*command, str(folder), str(tokens)], cwd=ROOT)
    try:
        return dict(measure(Counters(Path(options.counters)), options.rows, options.step_seconds, seconds, None))
    finally:
        process.kill()
        process.wait()


def over(protocol: str, streams: int, server: HostServer, options: HostOptions, seconds: float) -> dict[str, Any]:
    counters = Counters(Path(options.counters))
    for name in ("tokens", "replies"):
        counters.set(name, 0)
    address = server.http if protocol == "HTTP" else server.grpc
    tokens = tokens_for(options.step_seconds, seconds)
    given = [protocol, address, streams, options.rows - streams, tokens, options.counters]
    process = subprocess.Popen([sys.executable, "-m", "scripts.host.clients", *map(str, given)], cwd=ROOT)
    try:
        found = dict(measure(counters, options.rows, options.step_seconds, seconds, server))
        ideal = streams / options.step_seconds
        return {**found, "delivered": found["delivered"] / ideal}
    finally:
        process.kill()
        process.wait()
        counters.set("last_rows", 0)
        time.sleep(1.0)  # the server finds that they have left


def run(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    found = []
    for ms in args.steps_ms:
        length = 64 + tokens_for(ms / 1e3, args.seconds)
        if length > model.MAX_MODEL_LEN:
            raise SystemExit(f"{args.seconds:g} s of {ms:g} ms are more tokens than an answer may have")
        options = HostOptions(ms / 1e3, ROWS, length, str(folder / f"counters-{ms:g}"))
        if "offline" in args.only:
            found.append({"step_ms": ms, "how": "offline", "streams": 0, **offline(folder, options, args.seconds)})
            show(found[-1:])
        protocols = [name for name in ("gRPC", "HTTP") if name in args.only]
        if not protocols:
            continue
        options = dataclasses.replace(options, counters=options.counters + "-served")
        server = HostServer(folder, options)
        try:
            for protocol in protocols:
                for streams in args.streams:
                    row = over(protocol, streams, server, options, args.seconds)
                    found.append({"step_ms": ms, "how": protocol, "streams": streams, **row})
                    show(found[-1:])
        finally:
            server.stop()
    return found


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "step ms",
        "how",
        "streams",
        "of ideal",
        "no core",
        "bar",
        "got",
        "tok/msg",
        "server us/tok",
        *PARTS,
        "sum us",
    )
    for row in rows:
        parts = [row[f"{part}_us"] for part in PARTS]
        served = row["streams"] > 0
        table.add_row(
            f"{row['step_ms']:g}",
            row["how"],
            str(row["streams"]) if served else "",
            f"{100 * row['share']:.1f} %",
            f"{100 * row['no_core']:.1f} %",
            f"{100 * BARS[row['step_ms']]:.0f} %" if row["step_ms"] in BARS else "",
            f"{100 * row['delivered']:.1f} %" if served else "",
            f"{row['tokens_a_message']:.1f}" if served else "",
            f"{row['server_us_a_token']:.1f}" if served else "",
            *(f"{value:.0f}" for value in parts),
            f"{sum(parts):.0f}",
        )
    Console(width=160).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-ms", type=lambda text: [float(item) for item in text.split(",")], default=[5.0, 1.0])
    parser.add_argument("--streams", type=lambda text: [int(item) for item in text.split(",")], default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--only", type=lambda text: text.split(","), default=["offline", "gRPC", "HTTP", "schedule"])
    parser.add_argument("--plot", help="draw the cost of planning into this file")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if unknown := set(args.only) - {"offline", "gRPC", "HTTP", "schedule"}:
        parser.error(f"--only has {', '.join(sorted(unknown))}; it must be of offline, gRPC, HTTP, schedule")
    with tempfile.TemporaryDirectory() as name:
        rows = run(args, model.write(Path(name), "bpe"))
    if rows:
        show(rows)
    plans = planning.table() if "schedule" in args.only else []
    if plans:
        shown = Table(*plans[0], title="schedule and update, microseconds a step")
        for row in plans:
            shown.add_row(*(f"{value:.0f}" for value in row.values()))
        Console(width=100).print(shown)
        if args.plot:
            planning.draw(plans, Path(args.plot))
    if args.json:
        Path(args.json).write_text(json.dumps({"rates": rows, "planning": plans}, indent=1))
    return int(any(row["share"] < BARS.get(row["step_ms"], 0) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
