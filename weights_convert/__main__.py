"""The command line: `weights-convert` and `python -m weights_convert`.

Exit 0: done. 1: two files differ. 2: bad usage or bad input. 3: the output could not be written.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weights_convert import __version__
from weights_convert.commandline import (
    Parser,
    add_limits,
    add_quiet,
    add_reading_options,
    check_target,
    checkpoint_file,
    exit_code,
    limits_of,
    reading,
    setting,
    write_json,
)
from weights_convert.errors import MismatchError, SourceError, SpecError
from weights_convert.screen import output_for, print_facts, print_table, progress_bar, say

if TYPE_CHECKING:
    from weights_convert.optimizer.state import Facts


def parser() -> Parser:
    root = Parser(prog="weights-convert", description=__doc__.splitlines()[0])
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    convert = commands.add_parser("convert", help="write a checkpoint into another container or layout")
    convert.add_argument(
        "src", metavar="SRC", type=checkpoint_file, help="any checkpoint, recognised by its content"
    )
    convert.add_argument("dst", metavar="DST", help="output; its suffix selects the format (list formats)")
    add_reading_options(convert)
    convert.add_argument("--to", metavar="FAMILY", dest="to_family", help="naming of the tensors in DST")
    convert.add_argument("--dtype", metavar="D", help="float16, bfloat16, float32 or float64")
    convert.add_argument("--new-head", action="store_true", help="write a new classifier, random values")
    convert.add_argument("--num-classes", metavar="N", type=int, help="classes of the new classifier")
    convert.add_argument(
        "--reorder-classes", metavar="FILE", help="line i holds the class of SRC that becomes class i, from 0"
    )
    convert.add_argument(
        "--fold-bn", action="store_true", help="fold batch norms into the convolutions; for inference only"
    )
    convert.add_argument(
        "--fold-bias", action="store_true", help="fold biases before batch norms into the running means"
    )
    convert.add_argument(
        "--with-optimizer", action="store_true", help="carry the optimiser's state too, to go on training"
    )
    convert.add_argument(
        "--optimizer", metavar="KEY=VALUE", type=setting, action="append", default=[],
        help="a fact about it that SRC does not hold, such as momentum=0.9",
    )  # fmt: skip
    convert.add_argument(
        "--strict", action="store_true", help="refuse NaN, assumptions and tensors outside the network"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace DST")
    convert.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    convert.add_argument("--json", metavar="FILE", help="record the plan and every sha256; - for stdout")
    add_quiet(convert)
    convert.set_defaults(run=run_convert)

    inspect = commands.add_parser("inspect", help="show the contents of a file and how to convert it")
    inspect.add_argument("files", metavar="FILE", nargs="+", type=checkpoint_file)
    add_reading_options(inspect)
    inspect.add_argument("--json", metavar="FILE", help="the facts; of several files a list")
    add_quiet(inspect)
    inspect.set_defaults(run=run_inspect)

    diff = commands.add_parser("diff", help="compare the weights in two files of any format")
    options = "options about a file apply to A, --set to both"
    diff.add_argument("a", metavar="A", type=checkpoint_file, help=options)
    diff.add_argument("b", metavar="B", type=checkpoint_file)
    add_reading_options(diff)
    diff.add_argument("--json", metavar="FILE")
    add_quiet(diff)
    diff.set_defaults(run=run_diff)

    check = commands.add_parser("check", help="compare a file with a record of convert --json")
    check.add_argument("manifest", metavar="MANIFEST", help="- for stdin")
    check.add_argument("file", metavar="FILE", type=checkpoint_file)
    add_reading_options(check)
    add_quiet(check)
    check.set_defaults(run=run_check)

    names = commands.add_parser("names", help="propose a file for --names, by shapes and order")
    names.add_argument("file", metavar="FILE", type=checkpoint_file)
    names.add_argument("--model", metavar="NAME", help="the architecture (list models)")
    names.add_argument("--key", metavar="ENTRY", help="the entry of a PyTorch file that holds the weights")
    names.add_argument("--prefix", metavar="THEIRS", help="beginning of the network's names")
    add_limits(names)
    names.set_defaults(run=run_names)

    listing = commands.add_parser("list", help="list the known models, families and formats")
    listing.add_argument("what", nargs="?", choices=("models", "families", "formats"))
    listing.set_defaults(run=run_list)

    table = commands.add_parser("table", help="list every tensor of a model with its names and shapes")
    table.add_argument("model", metavar="MODEL")
    table.add_argument("--json", metavar="FILE")
    table.set_defaults(run=run_table)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""

    def job() -> int:
        arguments = parser().parse_args(argv)
        try:
            return int(arguments.run(arguments))
        except (MismatchError, SourceError) as error:
            if error.details:
                write_json(
                    getattr(arguments, "json", None), {"error": error.message, "details": error.details}
                )
            raise

    return exit_code(job)


# --------------------------------------------------------------------------------------------------
# Commands. They import heavy modules, so that --help and errors are quick.


def _check_json(target: str | None, *files: str) -> None:
    """`check_target` for checkpoints, whose prefix may mean several files."""
    if target is not None:
        from weights_convert.formats.given import Given

        check_target(target, *files, *(str(part) for file in files for part in Given(file).files()))


def run_convert(arguments: argparse.Namespace) -> int:
    from weights_convert.convert import convert
    from weights_convert.formats import format_for_writing

    written = format_for_writing(arguments.dst).files(Path(arguments.dst))
    others = [arguments.reorder_classes] if arguments.reorder_classes else []
    _check_json(arguments.json, arguments.src, arguments.dst, *map(str, written), *others)
    output, options = output_for(arguments), reading(arguments)
    options["from_family"] = options.pop("family")
    with progress_bar(arguments.quiet) as progress:
        plan = convert(
            arguments.src,
            arguments.dst,
            to_family=arguments.to_family,
            dtype=arguments.dtype,
            num_classes=arguments.num_classes,
            new_head=arguments.new_head,
            reorder_classes=arguments.reorder_classes,
            fold_bn=arguments.fold_bn,
            fold_bias=arguments.fold_bias,
            carry=_carried(arguments),
            strict=arguments.strict,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
            hash_source=arguments.json is not None,
            progress=progress,
            **options,
        )
    report = plan.to_json()
    write_json(arguments.json, report)  # first: the reader of stdout may have closed it
    if arguments.dry_run:
        print_table(
            output,
            ("source", "target", "shape", "dtype"),
            (
                [m.source_name, m.target_name, str(m.target.shape), m.target.dtype.name]
                for m in plan.all_moves
            ),
        )
    for name, what in report["left_out"].items():
        say(output, f"left out: {name} ({what})")
    for note in report["notes"]:
        say(output, f"note: {note}")
    checkpoint = plan.checkpoint
    verb = "would write" if arguments.dry_run else "wrote"
    source = f"{checkpoint.describe()}, {checkpoint.format} in the {checkpoint.family} layout"
    carried = f", with {len(plan.carried)} of its optimiser" if plan.carried else ""
    say(output, f"{verb} {plan.destination}: {len(plan.moves)} tensors of {source}{carried}")
    return 0


def _carried(arguments: argparse.Namespace) -> bool | Facts:
    """The argument `carry` of `convert`."""
    from weights_convert.optimizer.state import facts_of

    if arguments.optimizer and not arguments.with_optimizer:
        raise SpecError("--optimizer: a fact about a state that is not carried; give --with-optimizer too")
    facts = dict(arguments.optimizer)
    left = [str(value) for name, value in arguments.optimizer if name == "leave_out"]
    given = facts | ({"leave_out": ",".join(left)} if left else {})
    return facts_of(given, "--optimizer") if arguments.with_optimizer else False


def run_inspect(arguments: argparse.Namespace) -> int:
    from weights_convert.examine import facts
    from weights_convert.loading import load

    _check_json(arguments.json, *arguments.files)
    reports: list[dict[str, Any]] = []
    for file in arguments.files:
        with load(file, **reading(arguments)) as checkpoint:
            report = facts(checkpoint)
            report["convert"] = _suggestion(arguments, report)
            if reports:
                say(output_for(arguments), "")
            print_facts(output_for(arguments), _facts_of(report, checkpoint.describe()))
        reports.append(report)
    write_json(arguments.json, reports if len(reports) > 1 else reports[0])
    return 0


def _facts_of(report: dict[str, Any], what: str) -> list[tuple[str, str]]:
    """The lines of `inspect` on one file, each with its title."""
    dtypes = ", ".join(f"{count} {name}" for name, count in report["dtypes"].items())
    return [
        ("file", f"{report['path']} ({report['format']})"),
        ("family", " = ".join([report["family"], *report["same_as"]]) + f": {report['about']}"),
        ("architecture", what),
        ("fed", report["fed"] or "not said"),
        ("parameters", f"{report['parameters']:,} trainable"),
        ("tensors", f"{report['tensors']} ({dtypes}), {report['bytes']:,} bytes"),
        ("keywords", ", ".join(f"{key}={value!r}" for key, value in report["spec"].items())),
        ("assumed", ", ".join(report["assumed"]) or "nothing"),
        *(("odd", line) for line in report["odd"] or ["nothing"]),
        *((("optimizer", report["optimizer"]),) if report["optimizer"] else ()),
        *(("left out", f"{name} ({text})") for name, text in report["left_out"].items()),
        *(("note", line) for line in (*report["notes"], *report["cautions"])),
        ("convert", report["convert"]),
    ]


def _suggestion(arguments: argparse.Namespace, report: dict[str, Any]) -> str:
    """A command that converts the file for another framework, with the necessary options."""
    from weights_convert.formats import FORMATS

    target = FORMATS["keras" if report["format"] in ("torch", "safetensors", "npz", "folder") else "torch"]
    stem = report["path"]
    for suffix in (*(suffix for container in FORMATS.values() for suffix in container.suffixes), ".h5"):
        stem = stem.removesuffix(suffix)
    words = ["weights-convert", "convert", report["path"], stem + target.suffixes[0]]
    options = {"--model": arguments.model, "--from": arguments.family, "--key": arguments.key}
    options |= {"--scope": arguments.scope, "--prefix": arguments.prefix}
    for option, value in options.items():
        words += [option, value] if value is not None else []
    for names in arguments.names or ():
        words += ["--names", names]
    words += [
        f"--{flag.replace('_', '-')}" for flag in ("ema", "apply_masks", "assume") if getattr(arguments, flag)
    ]
    for key, value in arguments.settings:
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def run_diff(arguments: argparse.Namespace) -> int:
    from weights_convert.examine import diff
    from weights_convert.loading import load
    from weights_convert.spec import COUNTS, is_count

    _check_json(arguments.json, arguments.a, arguments.b)
    options = reading(arguments)
    of_b = {name: options[name] for name in ("settings", "assume", "limits")}
    with load(arguments.a, **options) as a, load(arguments.b, **of_b) as b:
        lines = diff(a, b)
        count = sum(name in b for name in a)
    # a file that Keras or TF1 saved has none
    lonely = [line for line in lines if is_count(line["tensor"]) and line["what"].startswith("only")]
    found = [line for line in lines if line not in lonely]
    differences = [
        line if math.isfinite(line.get("max_abs", 0)) else line | {"max_abs": None}  # JSON has no infinity
        for line in found
    ]
    write_json(arguments.json, {"equal": not found, "differences": differences, "not_compared": lonely})
    output = output_for(arguments)
    if found:
        rows = (
            [line["tensor"], line["what"], f"{line['max_abs']:.3g}" if "max_abs" in line else "",
             str(line.get("where", ""))]
            for line in found
        )  # fmt: skip
        print_table(output, ("tensor", "difference", "largest", "at"), rows)
        say(output, f"{len(found)} differences")
    else:
        say(output, f"equal: {count} tensors, bit for bit")
    if lonely:
        say(output, f"note: {len(lonely)} {COUNTS} {lonely[0]['what']}, which changes no output")
    return 1 if found else 0


def run_check(arguments: argparse.Namespace) -> int:
    from weights_convert.loading import load
    from weights_convert.manifest import check, read_manifest

    manifest = read_manifest(arguments.manifest)
    with load(arguments.file, **reading(arguments)) as checkpoint:
        found = check(manifest, checkpoint)
    output = output_for(arguments)
    if found:
        print_table(output, ("tensor", "difference"), ([line["tensor"], line["what"]] for line in found))
        say(output, f"{len(found)} differences")
    else:
        say(output, f"as recorded: {len(manifest['tensors'])} tensors")
    return 1 if found else 0


def run_names(arguments: argparse.Namespace) -> int:
    from weights_convert.formats import open_reader
    from weights_convert.identify.reading import Listing
    from weights_convert.propose import propose

    with open_reader(arguments.file, arguments.key, limits_of(arguments)) as reader:
        for line in propose(Listing(reader, None, arguments.prefix), arguments.model).lines():
            say(sys.stdout, line)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    from weights_convert.families import FAMILIES
    from weights_convert.formats import CAFFE, FOLDER, FORMATS
    from weights_convert.spec import MODELS, count_parameters, model_spec

    formats = (*FORMATS.values(), FOLDER, CAFFE)
    tables: dict[str, tuple[tuple[str, ...], Callable[[], Iterable[list[str]]]]] = {
        "models": (
            ("model", "parameters"),
            lambda: ([name, f"{count_parameters(model_spec(name)):,}"] for name in MODELS),
        ),
        "families": (
            ("family", "", "whose"),
            lambda: [[f.name, "read, written" if f.written else "read", f.about] for f in FAMILIES.values()],
        ),
        "formats": (
            ("format", "written as", "what it is", "layout"),
            lambda: [
                [f.name, "" if f is CAFFE else " ".join(f.suffixes), f.description, f.own_family]
                for f in formats
            ],
        ),
    }
    for name in [arguments.what] if arguments.what else tables:
        columns, rows = tables[name]
        print_table(output_for(arguments), columns, rows())
    return 0


def run_table(arguments: argparse.Namespace) -> int:
    from weights_convert.layouts import LAYOUTS
    from weights_convert.spec import model_spec, parameters

    spec = model_spec(arguments.model)
    tensors: list[dict[str, Any]] = [
        {
            "names": {name: layout.rename(parameter, spec) for name, layout in LAYOUTS.items()},
            "role": parameter.role,
            "shape": parameter.shape,
            "tensorflow_shape": LAYOUTS["tf1"].stored(parameter).shape(parameter.shape),
        }
        for parameter in parameters(spec)
    ]
    rows = [
        [*(name or "-" for name in line["names"].values()), str(line["shape"]), str(line["tensorflow_shape"])]
        for line in tensors
    ]
    print_table(output_for(arguments), (*LAYOUTS, "PyTorch shape", "TensorFlow shape"), rows)
    write_json(arguments.json, tensors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
