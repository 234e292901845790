"""The command line: `python -m recipes train | evaluate | predict | explain | curves ...`.

Exit 0: done. 1: a training that cannot go on. 2: bad usage or bad input. 3: a file could not be written.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from parity_tests.quiet_start import python_stderr_apart, start
from recipes.recipe import Recipe, read_recipe
from weights_convert import __version__
from weights_convert.commandline import Parser, exit_code, positive

FRAMEWORKS = ("torch", "keras", "tf1")


def parser() -> Parser:
    root = Parser(prog="recipes", description=__doc__.splitlines()[0])
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    jobs = root.add_subparsers(dest="job", required=True, metavar="JOB", parser_class=Parser)
    _add_train(jobs.add_parser("train", help="train a network on pictures"))
    _add_predict(jobs.add_parser("predict", help="the most probable classes of pictures"))
    _add_evaluate(jobs.add_parser("evaluate", help="the share of a data set that is classified correctly"))
    _add_explain(jobs.add_parser("explain", help="what the attention blocks do with a picture"))
    _add_curves(jobs.add_parser("curves", help="draw the figures of trainings into one picture"))
    return root


def _add_train(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_train)
    command.add_argument("--framework", choices=FRAMEWORKS, default="torch")
    command.add_argument(
        "--data", default="digits", metavar="digits | cifar10 | FOLDER",
        help="a folder has one directory per class, perhaps inside train and val (default: digits)",
    )  # fmt: skip
    command.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/FRAMEWORK-MODEL-DATA")
    command.add_argument("--resume", action="store_true", help="go on from the last state in --out")
    command.add_argument(
        "--weights", metavar="FILE", help="a checkpoint to begin with; other classes get a new head"
    )
    command.add_argument("--save-every", type=positive, metavar="STEPS", help="between two states (an epoch)")
    command.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be decoded")
    command.add_argument("--recipe", metavar="FILE.toml", help="settings; the options below go before it")
    for setting in dataclasses.fields(Recipe):
        option = f"--{setting.name.replace('_', '-')}"
        text = f"{setting.metadata['help']} ({setting.default})"
        if setting.type == "bool":
            command.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        kind = {"int": int, "int | None": int, "float": float, "str": str}[str(setting.type)]
        command.add_argument(
            option,
            type=kind,
            metavar=setting.name.upper(),
            choices=setting.metadata.get("choices"),
            help=text,
        )


def _train(arguments: argparse.Namespace) -> int:
    from recipes.data import open_data
    from recipes.run import check_installed, train
    from recipes.screen import Screen

    check_installed(arguments.framework)
    # TensorBoard, which Lightning logs to, imports TensorFlow
    start(["torch", "tf1"] if arguments.framework == "torch" else [arguments.framework])
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Recipe)}
    recipe = read_recipe(
        arguments.recipe, {name: value for name, value in given.items() if value is not None}
    )
    data = open_data(arguments.data, size=recipe.size, seed=recipe.seed, skip_bad=arguments.skip_bad)
    out = arguments.out or Path("runs") / f"{arguments.framework}-{recipe.model}-{data.name}"
    with Screen(arguments.framework, recipe, data, out) as screen:
        train(
            arguments.framework, recipe, data, out,
            weights=arguments.weights, resume=arguments.resume, save_every=arguments.save_every,
            on_step=screen.step, on_epoch=screen.epoch,
        )  # fmt: skip
        screen.end()
    return 0


def _add_predict(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_predict)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--top", type=positive, default=5, metavar="N", help="classes to show (5)")
    _add_network(command)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_evaluate)
    command.add_argument("data", metavar="digits | cifar10 | FOLDER", help="its test pictures")
    command.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be decoded")
    command.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint of any container")
    command.add_argument(
        "--framework", nargs="+", choices=FRAMEWORKS, default=["torch"],
        help="several are compared picture by picture",
    )  # fmt: skip


def _add_explain(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_explain)
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("--out", type=Path, metavar="FILE.png", help="draw the gates as a picture")
    _add_network(command)


def _add_curves(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_curves)
    command.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="the --out of a training")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .svg or .pdf")


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint of any container")
    command.add_argument("--framework", choices=FRAMEWORKS, default="torch")


def _predict(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from recipes.classifier import classifier
    from recipes.predict import input_of, predict

    start([arguments.framework])
    console = Console(highlight=False, soft_wrap=True)
    given = input_of(arguments.weights)
    for path, shares in predict(arguments.images, given, classifier(arguments.weights, arguments.framework)):
        console.print(f"{path}", markup=False)
        for label in shares.argsort()[::-1][: arguments.top]:
            bar = "\u2588" * round(30 * shares[label])
            console.print(f"  {shares[label]:7.2%} {given.classes[label]:<12} {bar}", markup=False)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import numpy as np
    from rich.console import Console

    from recipes.classifier import classifier
    from recipes.data import open_data
    from recipes.predict import caution_about_split, disagreements, input_of, logits_of

    given = input_of(arguments.weights)
    data = open_data(arguments.data, size=given.size, seed=given.seed, skip_bad=arguments.skip_bad)
    caution_about_split(data, given)
    frameworks = list(dict.fromkeys(arguments.framework))
    start(frameworks)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    skipped = f"; {len(data.skipped)} skipped" if data.skipped else ""
    logits = {}
    for framework in frameworks:
        rows = logits_of(data.test, given, classifier(arguments.weights, framework))
        hits = int((rows.argmax(1) == data.test.labels).sum())
        console.print(
            f"{arguments.weights} in {framework}: {hits:,} of {len(rows):,} test pictures "
            f"of {data.name} are classified correctly ({hits / len(rows):.2%}){skipped}"
        )
        logits[framework] = rows
    if len(frameworks) > 1:
        differing = disagreements(logits)
        spread = float(np.ptp(np.stack(list(logits.values())), 0).max())
        console.print(
            f"{len(differing)} of {len(data.test):,} pictures are classified differently; "
            f"logits differ by at most {spread:.1e}"
        )
        for picture, labels, margin in differing:
            named = ", ".join(f"{given.classes[label]} in {name}" for name, label in labels.items())
            console.print(f"  picture {picture}: {named}; the two best logits differ by {margin:.1e}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from recipes.explain import check_place, explain, rows, write
    from recipes.predict import input_of

    check_place(arguments.out, arguments.image)
    given = input_of(arguments.weights)
    start([arguments.framework])
    found = explain(arguments.image, arguments.weights, given, arguments.framework)
    table = Table("block", "weighs", "factors", box=None, pad_edge=False)
    for row in rows(found):
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)
    if arguments.out is not None:
        write(found, given.classes, arguments.out)
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    from recipes.curves import draw, names_of, read

    draw({name: read(run) for name, run in names_of(arguments.runs).items()}, arguments.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""

    def job() -> int:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments)

    with python_stderr_apart():
        return exit_code(job)


if __name__ == "__main__":
    sys.exit(main())
