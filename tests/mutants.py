"""Mutation score: `make mutants` runs mutmut and records which small changes no test notices.

Mutmut changes one thing at a time (a number, a sign, a condition, an argument, a word) in the files
of `only_mutate` in pyproject.toml, and runs the tests of these files against each mutant. A mutant
is killed if a test fails or never ends. `mutants.json` lists the survivors, each with the reason
why it is no gap. A new survivor has no reason yet: then `make test` fails.
Source: https://mutmut.readthedocs.io; DeMillo, Lipton & Sayward, "Hints on test data selection",
Computer 11 (4), 1978.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
PACKAGE = Path("src/mnist_mlp")
KILLED, HUNG, NO_TEST = (1, 3), (-24, 36), 33  # exit statuses in mutmut's .meta files


def main() -> None:
    """Run mutmut on all mutants, 40 minutes on two cores, and write the record."""
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    # One thread: mutmut forks, which the threads of torch do not survive.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    subprocess.run(["mutmut", "run", "--max-children", "2"], cwd=ROOT, env=environment, check=True)
    reasons = {}
    if RECORD.exists():
        reasons = {s["change"]: s["why"] for s in json.loads(RECORD.read_bytes())["survivors"]}
    files, survivors = {}, []
    for meta in sorted((ROOT / "mutants" / PACKAGE).rglob("*.meta")):
        statuses = json.loads(meta.read_bytes())["exit_code_by_key"]
        killed = sum(status in KILLED for status in statuses.values())
        hung = sum(status in HUNG for status in statuses.values())
        file = meta.relative_to(ROOT / "mutants" / PACKAGE).with_suffix("").as_posix()
        files[file] = {"mutants": len(statuses), "killed": killed, "hung": hung}
        for name, status in statuses.items():
            if status not in KILLED + HUNG:
                change = _change(name)
                survivors.append({"file": file, "change": change, "why": reasons.get(change)})
    record = {
        "made_by": "make mutants",
        "versions": {"mutmut": version("mutmut"), "python": sys.version.split()[0]},
        "files": files,
        "survivors": survivors,
    }
    RECORD.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, counts in files.items():
        share = (counts["killed"] + counts["hung"]) / counts["mutants"]
        print(f"{name}: {share:.1%} of {counts['mutants']} mutants killed")
    print(f"{len(survivors)} survived, {sum(not s['why'] for s in survivors)} not yet explained")


def _change(name: str) -> str:
    """Return the lines that a mutant changes, as of `diff`."""
    shown = subprocess.run(
        ["mutmut", "show", name], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return "\n".join(
        line[0] + " " + line[1:].strip()
        for line in shown.splitlines()
        if line.startswith(("-", "+")) and not line.startswith(("---", "+++"))
    )


if __name__ == "__main__":
    main()
