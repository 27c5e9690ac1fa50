"""Fuzz the readers for some time each: `python -m tests.fuzz [--seconds N] [--only NAME ...]`."""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.child import Summary, fuzz
from tests.fuzz.damage import Damage
from tests.fuzz.judge import judge
from tests.fuzz.targets import Target, available
from tests.volumes import FileVolume

_ROUND_SECONDS = 60.0
"""Targets take turns, so that a run that is stopped has seen all of them."""


def main() -> int:
    """0 where nothing was found, 1 where something was."""
    targets = available()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="in all (default: 600)")
    parser.add_argument("--only", nargs="+", choices=targets, default=list(targets), metavar="NAME")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="a finding's folder, to see it again")
    parser.add_argument("--list", action="store_true", help="the names of all targets")
    arguments = parser.parse_args()
    if arguments.list:
        print(*targets, sep="\n")
        return 0
    if arguments.replay:
        return _replay(targets, arguments.replay)
    print(f"seed {arguments.seed}")
    summaries = _run([targets[name] for name in arguments.only], arguments)
    print("\n| target | executions | answered | kinds of refusal | lines | findings |")
    print("|---|---|---|---|---|---|")
    for done in summaries:
        print(
            f"| {done.target} | {done.executions} | {done.answered} | {len(done.reasons)} "
            f"| {done.lines} | {len(done.findings)} |"
        )
    return int(any(done.findings for done in summaries))


def _run(targets: list[Target], arguments: argparse.Namespace) -> list[Summary]:
    summaries = {target.name: Summary(target.name) for target in targets}
    each = arguments.seconds / len(targets)
    rounds = max(round(each / _ROUND_SECONDS), 1)
    with tempfile.TemporaryDirectory(prefix="imager-fuzz-") as temporary:
        paths = {}
        for target in targets:
            folder = Path(temporary) / target.name
            folder.mkdir()
            paths[target.name] = target.make(folder)
        for turn in range(rounds):
            for target in targets:
                seed = arguments.seed + 1000 * turn
                path = paths[target.name]
                done = fuzz(target, path, seed, each / rounds)
                total = summaries[target.name]
                total.executions += done.executions
                total.answered += done.answered
                total.reasons += done.reasons
                total.lines = max(total.lines, done.lines)
                for finding, damage in done.findings.values():
                    if finding.partition("\n")[0] not in total.findings:
                        total.add(finding, damage)
                        _keep(arguments.findings, target, path, finding, damage)
                print(
                    f"{target.name}: {total.executions} executions, {len(total.reasons)} kinds of "
                    f"refusal, {total.lines} lines, {len(total.findings)} findings",
                    flush=True,
                )
    return list(summaries.values())


def _keep(folder: Path, target: Target, path: Path, finding: str, damage: Damage) -> None:
    """Put a finding, and the volume that it is about, into a folder of its own."""
    place = folder / f"{target.name}-{time.time_ns()}"
    place.mkdir(parents=True)
    lines = [target.name, finding, f"size {damage.size}, checksums forged: {damage.forged}"]
    lines += [f"{at}: {len(data)} bytes: {data[:32].hex()}" for at, data in damage.patches]
    (place / "finding.txt").write_text("\n".join(lines))
    (place / "damage.pickle").write_bytes(pickle.dumps(damage))
    (place / "volume").write_bytes(path.read_bytes())
    print(f"{target.name}: {finding.partition(chr(10))[0]}: {place}", flush=True)


def _replay(targets: dict[str, Target], place: Path) -> int:
    """Judge a finding that was kept once more."""
    target = targets[(place / "finding.txt").read_text().splitlines()[0]]
    sound = FileVolume(place / "volume")
    damage: Damage = pickle.loads((place / "damage.pickle").read_bytes())
    outcome = judge(target, sound, target.read(sound), damage)
    print(outcome.finding or outcome.reason or "the reader answers, and nothing is lost")
    return int(bool(outcome.finding))


if __name__ == "__main__":
    sys.exit(main())
