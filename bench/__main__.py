"""`python -m bench`: measures, prints a table, writes build/bench.json."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from bench.figures import Row, show, write
from bench.measures import MEASURES, Bench


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="names of measures; all when none is given: " + ", ".join(MEASURES))
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--rounds", type=float, default=1.0, help="times the usual number of repetitions")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(MEASURES)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    directory = Path(tempfile.mkdtemp(prefix="dovecote-bench-"))
    directory.chmod(0o711)
    rows: list[Row] = []
    failed: list[str] = []
    try:
        with Bench(directory, arguments.rounds) as bench:
            for name in arguments.only or MEASURES:
                print(f"measuring {name} ...", file=sys.stderr, flush=True)
                try:
                    rows += MEASURES[name](bench)
                except Exception:
                    # The others have their figures all the same.
                    traceback.print_exc()
                    failed.append(name)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    show(rows)
    write(rows, arguments.output)
    print(f"written to {arguments.output}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


sys.exit(main())
