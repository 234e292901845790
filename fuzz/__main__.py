"""`python -m fuzz READER`: mutates files, guided by coverage, until one is neither read nor refused.

Exits with 0 if nothing is found in the given time; otherwise stores the input beside the corpus as
`READER-crash-*`. An input that takes longer than 10 s ends the process by SIGPROF; its files are in `files`.
To try an input again: `python -m fuzz READER FILE`.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SECONDS_PER_INPUT = 10


def _parser() -> argparse.ArgumentParser:
    from fuzz.target import READERS

    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("file", nargs="*", type=Path, help="try only these inputs")
    parser.add_argument("--seconds", type=int, default=900, help="processor time; default: 900")
    parser.add_argument("--corpus", type=Path, help="kept between runs; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _make_corpus(reader: str, folder: Path) -> None:
    """Create the seeds in a separate process, because frameworks take gigabytes of address space."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        "import sys; from pathlib import Path; from fuzz.corpus import seeds\n"
        "for name, data in seeds(sys.argv[1]).items(): Path(sys.argv[2], name).write_bytes(data)"
    )
    subprocess.run([sys.executable, "-c", code, reader, str(folder)], check=True)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["weights_convert", "zipfile", "pickletools", "numpy.lib"]):
        from fuzz import target
        from fuzz.mutations import mutate

    arguments = _parser().parse_args()
    reader = arguments.reader
    with tempfile.TemporaryDirectory() as temporary:
        corpus = arguments.corpus or Path(temporary) / "corpus"
        folder = corpus.parent / "files"
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.file:
            _make_corpus(reader, corpus)
        for path in arguments.file or sorted(corpus.iterdir()):  # also imports everything
            if path.is_file():
                path = target.put(reader, path.read_bytes(), folder)
                target.read_all(path)
        taken = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (taken + target.MEMORY, -1))
        counts, start = [0, 0], time.process_time()

        def one_input(data: bytes) -> None:
            # processor time, so that the process can be paused; the signal also ends a loop in a C library
            signal.setitimer(signal.ITIMER_PROF, _SECONDS_PER_INPUT)
            counts[target.try_input(reader, data, folder)] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
            if sum(counts) % 100 == 0:
                seconds = time.process_time() - start
                line = f"{sum(counts)} inputs, {counts[1]} read, {seconds:.0f} s of the processor"
                (corpus.parent / f"{reader}.counts").write_text(f"{line}\n")
                if seconds > arguments.seconds:
                    print(f"done: {line}", flush=True)
                    os._exit(0)  # libFuzzer has no other way to stop

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            rng = random.Random(seed)

            def change(part: bytes) -> bytes:
                return atheris.Mutate(part, max(len(part) + 64, 64))

            return mutate(reader, data, rng, change)[:max_size]

        options = [
            "-timeout=999999", "-rss_limit_mb=1536", "-max_len=65536",
            f"-seed={arguments.seed}", f"-artifact_prefix={corpus.parent}/{reader}-", "-print_final_stats=1",
        ]  # fmt: skip
        sources = [str(path) for path in arguments.file] or [str(corpus)]
        atheris.Setup([sys.argv[0], *options, *sources], one_input, custom_mutator=mutator)
        atheris.Fuzz()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
