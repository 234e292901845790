"""The table of a report on a terminal."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from parity_tests.compare.report import Report
from parity_tests.compare.table import show
from parity_tests.tests import example_reports


def shown(report: Report, width: int = 120, *, colour: bool = False, **keywords: int) -> list[str]:
    console = Console(width=width, record=True, force_terminal=colour, quiet=not colour, highlight=False)
    with console.capture() as capture:
        console.quiet = False
        show(console, report, **keywords)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_report_that_holds(capsys):
    lines = shown(example_reports.holds())
    assert lines[0] == "parity holds: se_resnet50"
    assert lines[1].split() == ["point", "shape", "torch", "keras", "tf1", "limit", "alone"]
    assert len(lines) == 1 + 1 + 20 + 1 + 1 + 1
    assert lines[-3] == "20 of 174 layers, nearest to their limits"
    assert re.fullmatch(
        r"gradients: 153 within the limit; worst layer2\.3\.bn1\.weight: torch .*, limit 1\.0e-10", lines[-2]
    )
    assert lines[-1].startswith("training: 20 steps in float64, all within the limit; at the end torch ")
    assert "one ulp alone" in lines[-1]
    assert "!" not in "".join(lines)
    assert capsys.readouterr() == ("", "")  # it printed to its console and nowhere else


def test_the_first_line_is_the_divergence_and_the_rows_are_around_it():
    report = example_reports.differs()
    lines = shown(report, rows=9)
    assert lines[0] == f"NO PARITY: {report.title}: {report.first_divergence()}"
    names = [line.split()[0] for line in lines[2:11]]
    place = [point.name for point in report.layers].index("layer2.1.bn2")
    assert names == [point.name for point in report.layers[place - 3 : place + 6]]
    assert lines[11] == "9 of 174 layers, around the first divergence"
    marked = [line.count("!") for line in lines[2:11]]
    assert marked == [0, 0, 0, 2, 1, 1, 1, 1, 1], lines  # in the network and alone, then in the network only
    assert re.search("gradients: 50 of 153 beyond the limit; worst layer1", lines[12])
    assert "keras beyond the limit from step 1, loss" in lines[13]


@pytest.mark.parametrize("wrong", ["conv1", "fc"])
def test_a_divergence_at_an_end(wrong):
    lines = shown(example_reports.differs(wrong=wrong), rows=9)
    names = [line.split()[0] for line in lines[2:11]]
    assert wrong in names
    assert len(set(names)) == 9


@pytest.mark.parametrize("width", [60, 40])
def test_a_narrow_terminal_cuts_no_figure(width):
    wide, narrow = shown(example_reports.holds()), shown(example_reports.holds(), width)
    assert "4x64x112x112" in " ".join(wide) or "4x1024x14x14" in " ".join(wide)
    assert "x14x14" not in " ".join(narrow)  # the shapes go first
    figures = [re.findall(r"\d\.\de-\d\d", " ".join(lines)) for lines in (wide, narrow)]
    assert figures[0] == figures[1]
    assert len(figures[0]) > 100
    assert "…" not in "".join(narrow)


def test_long_names_are_folded():
    report = example_reports.holds()
    report.layers[0].name = "a" * 300
    report.layers = report.layers[:1]
    lines = shown(report, 80)
    assert sum(line.count("a") for line in lines[2:-2]) == 300
    assert all(len(line) <= 80 for line in lines[:-2])


def test_everything_is_optional():
    report = Report("small", "numpy", ["torch"], "float64")
    assert shown(report) == ["NO PARITY: small: nothing was compared"]
    report.layers = example_reports.holds().layers[:2]
    for point in report.layers:
        point.isolated = {}
        point.errors = {"torch": 0.0}
    lines = shown(report)
    assert lines[0] == "parity holds: small"
    assert lines[1].split() == ["point", "shape", "torch", "limit"]
    assert len(lines) == 4


def test_names_are_neither_markup_nor_terminal_sequences():
    report = example_reports.odd()
    report.layers[0].name = "[bold]\x1b[31m[/nothing]"
    lines = shown(report)
    assert "\x1b" not in "".join(lines)
    assert "[bold]\\x1b[31m[/nothing]" in "\n".join(lines)
    assert " inf !" in "\n".join(lines)
    assert " nan !" in "\n".join(lines)


def test_colours():
    assert shown(example_reports.holds(), colour=True)[0].startswith("\x1b[32mparity holds")
    assert shown(example_reports.differs(), 200, colour=True)[0].startswith("\x1b[1;31mNO PARITY")
