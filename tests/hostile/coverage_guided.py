"""Coverage-guided fuzzing of what is one file, with Atheris where it is installed (`pip install atheris`).

    python tests/hostile/coverage_guided.py "configuration" -max_total_time=60

The fuzzer keeps what reaches new lines of ours and changes it further; the judge is the campaign's. It starts from the
campaign's own cases, and stops at the first escape, which it writes to `crash-…`. Other options are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

SEEDS = 200


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("Atheris is not installed: pip install atheris")
    # Counted are our own lines alone; the libraries have fuzzers of their own.
    with atheris.instrument_imports(include=["merit"]):
        from campaign import surfaces

        known = {surface.name: surface for surface in surfaces()}
    from verdict import open_room

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in known:
        sys.exit(f"which surface? one of: {', '.join(known)}")
    surface = known[name]
    file, fixed = _one_file(surface)
    with open_room() as room, tempfile.TemporaryDirectory(prefix="merit-corpus-") as corpus:
        for number, content in enumerate(_seeds(surface, file)):
            Path(corpus, str(number)).write_bytes(content)

        def attack(content: bytes) -> None:
            verdict = surface.judge(room, {**fixed, file: content} if fixed else content)
            if verdict.bad:
                raise RuntimeError(f"{verdict.kind}: {verdict.why}")

        surface.judge(room, {**fixed, file: b"x"} if fixed else b"x")  # what is imported on the way is no escape
        atheris.Setup([sys.argv[0], corpus, "-rss_limit_mb=0", "-timeout=120", *sys.argv[2:]], attack)
        atheris.Fuzz()


def _cases(surface: Any) -> list[Any]:
    from hypothesis import HealthCheck, Phase, given, settings

    found: list[Any] = []
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}

    @settings(max_examples=SEEDS, **quiet)
    @given(surface.cases)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def _one_file(surface: Any) -> tuple[str, dict[str, bytes]]:
    """The file that is fuzzed, and those that lie beside it unchanged."""
    case = _cases(surface)[0]
    if isinstance(case, bytes):
        return surface.file, {}
    if not isinstance(case, dict):
        sys.exit("this surface is not a file")
    file = next(iter(case))
    return file, {name: content for name, content in case.items() if name != file}


def _seeds(surface: Any, file: str) -> list[bytes]:
    cases = _cases(surface)
    return [
        case if isinstance(case, bytes) else case[file] for case in cases if isinstance(case, bytes) or file in case
    ]


if __name__ == "__main__":
    main()
