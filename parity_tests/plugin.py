"""The pytest plugin `parity`: the fixture `parity`, and `--parity-report out.html` for a page of its reports.

With pytest-xdist the workers send the reports with the results of their tests.
"""

from __future__ import annotations

import base64
import importlib
import pickle
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity_tests.compare.report import Report

_OF_THIS_TEST = pytest.StashKey[list["Report"]]()
_ATTRIBUTE = "_parity_reports"  # of a pytest.TestReport; holds text, which workers can send


class Parity:
    """The value of the fixture: makes comparisons and keeps their reports for the page."""

    def __init__(self, node: pytest.Item) -> None:
        self._title = node.nodeid
        self._reports = node.stash.setdefault(_OF_THIS_TEST, [])

    def compare(self, reference: Any, candidate: Any, inputs: Any, **keywords: Any) -> Report:
        """Call `parity_tests.compare.layers.compare_models` and keep the report under the test's name."""
        # imported here, because pytest must not import frameworks when it starts
        layers = importlib.import_module("parity_tests.compare.layers")
        report: Report = layers.compare_models(reference, candidate, inputs, **keywords)
        number = len(self._reports) + 1
        report.title = self._title if number == 1 else f"{self._title} #{number}"
        self._reports.append(report)
        return report

    def assert_same(self, reference: Any, candidate: Any, inputs: Any, **keywords: Any) -> Report:
        """Like `parity_tests.compare.layers.assert_parity`; also keeps the report of a failure.

        Raises:
            AssertionError: names the first divergence, or parts that were not compared.
        """
        report = self.compare(reference, candidate, inputs, **keywords)
        if not report.holds:
            raise AssertionError(report.why_not())
        if report.caveat:
            warnings.warn(f"parity holds, but {report.caveat}", stacklevel=2)
        return report


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Compares models of two frameworks layer by layer; see docs/report.md."""
    return Parity(request.node)


class _Collector:
    """Collects the reports of all tests in the main process and writes the page."""

    def __init__(self, target: str | None, *, in_workers: bool) -> None:
        self.target = target
        self.in_workers = in_workers
        self.tests: list[tuple[str, list[Report]]] = []
        self.failure = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        sent = getattr(report, _ATTRIBUTE, None)
        if sent:
            self.tests.append((report.nodeid, pickle.loads(base64.b64decode(sent))))  # from our own worker

    @property
    def reports(self) -> list[Report]:
        return [report for _, reports in self.tests for report in reports]

    def pytest_sessionfinish(self) -> None:
        if self.in_workers:  # workers finish in any order
            self.tests.sort(key=lambda test: test[0])
        if self.target is None:
            return
        from parity_tests.page.page import write_page
        from weights_convert.errors import WriteError

        try:
            write_page(self.reports, self.target)
        except WriteError as error:
            self.failure = str(error)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reports and self.target is None:
            return
        count = len(self.reports)
        differ = sum(not report.holds for report in self.reports)
        state = f"{differ} {'differs' if differ == 1 else 'differ'}" if differ else "parity holds"
        line = f"parity: {count} {'comparison' if count == 1 else 'comparisons'}"
        line += f", {state}" if count else ""
        if self.target is not None:
            line += f"; {self.failure}" if self.failure else f"; report {self.target}"
        terminalreporter.write_line(
            line, red=bool(differ or self.failure), green=not (differ or self.failure)
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("parity").addoption(
        "--parity-report", metavar="FILE.html", help="write the reports of the fixture `parity` as a page"
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist; the main process collects
        return
    target = config.getoption("--parity-report")
    if target is not None:
        from weights_convert.commandline import HTML, check_target
        from weights_convert.errors import WeightsConvertError

        try:
            check_target(target, begins=HTML)
        except WeightsConvertError as error:
            raise pytest.UsageError(f"--parity-report {error}") from None
    in_workers = config.getoption("dist", "no") != "no"
    config.pluginmanager.register(_Collector(target, in_workers=in_workers), "parity-collector")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    result: Any = yield
    reports = item.stash.get(_OF_THIS_TEST, None)
    if reports and result.when == "teardown":  # runs even if the set-up or the test failed
        del item.stash[_OF_THIS_TEST]
        setattr(result, _ATTRIBUTE, base64.b64encode(pickle.dumps(reports)).decode())
    return result
