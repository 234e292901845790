"""`python -m benchmarks NAME`: run one benchmark and print the figures (`--json` saves, `--plot` draws them).

NAME is a module of this folder with `add_arguments(parser)` and `main(arguments)`, which returns the figures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAMES = ("conversion", "models", "grouped")
PACKAGES = ("numpy", "h5py", "ml_dtypes", "torch", "keras", "tensorflow")


def machine() -> dict[str, Any]:
    """The environment that the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    for name, module in modules.items():
        command = names.add_parser(name, help=(module.__doc__ or name).splitlines()[0])
        command.add_argument("--json", metavar="FILE", type=Path)
        command.add_argument("--plot", metavar="FILE", type=Path, help="bars, as .svg or .png")
        module.add_arguments(command)
    arguments = parser.parse_args()
    report = {"machine": machine(), "figures": modules[arguments.name].main(arguments)}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        from benchmarks.plot import draw

        draw(report["figures"], arguments.plot)


if __name__ == "__main__":
    main()
