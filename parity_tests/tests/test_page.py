"""The page of a report: complete, escaped, without external resources; also in a real browser."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from parity_tests.compare.report import Point, Report, Training
from parity_tests.page.page import by_depth, page, write_page
from parity_tests.page.plot import LinearAxis, LogAxis, escape, shorten
from parity_tests.tests import example_reports
from weights_convert.errors import WriteError

VOID = {"meta", "path", "rect"}  # void in HTML, or written with a slash in SVG
EXAMPLES = {
    "holds": [example_reports.holds()],
    "differs": [example_reports.differs()],
    "odd": [example_reports.odd()],
    "several": [example_reports.holds(), example_reports.odd(), example_reports.differs()],
    "empty": [Report("empty", "numpy", ["keras"], "float64")],
    "none": [],
}


class Page(HTMLParser):
    """The elements of a page; fails if a tag is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.figures: list[Counter[str]] = []  # class -> how many, in every figure
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        found = {name: value or "" for name, value in attributes}
        self.elements.append((tag, found))
        if tag == "figure":
            self.figures.append(Counter({"figure " + found["class"]: 1}))
        if self.figures and "figure" in self.open:
            self.figures[-1].update(found.get("class", "").split())
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID, tag
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def figure(self, kind: str) -> Counter[str]:
        found = [figure for figure in self.figures if figure[f"figure {kind}"]]
        assert len(found) == 1
        return found[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_well_formed_and_loads_nothing(name, tmp_path):
    write_page(EXAMPLES[name], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "image", "base"}
        assert not {"src", "srcset", "xlink:href", "data", "style", "action"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert not any(attribute.startswith("on") for attribute in attributes)
    assert not re.search(r"https?:|url\(|@import|@font-face|fetch\(|XMLHttp", text)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_coordinate_is_a_number(name):
    for tag, attributes in Page(page(EXAMPLES[name])).elements:
        if tag in {"path", "rect", "text"}:
            for key in ("d", "x", "y", "width", "height", "transform"):
                assert not re.search("nan|inf|e[-+]", attributes.get(key, "")), attributes
        assert not attributes.get("width", "").startswith("-")
        assert not attributes.get("height", "").startswith("-")


@pytest.mark.parametrize("name", [name for name in EXAMPLES if EXAMPLES[name]])
def test_the_verdicts_come_first(name):
    parsed = Page(page(EXAMPLES[name]))
    top = parsed.text[: parsed.text.index("against")]
    for report in EXAMPLES[name]:
        assert visible(report.title) in top
        if not report.holds:
            assert visible(str(report.first_divergence() or "nothing compared")) in top
        for who, layer in report.culprits():
            assert visible(shorten(layer, 60)) in top or visible(layer) in top, who
    states = [a["class"] for tag, a in parsed.elements if a.get("class") in ("holds", "differs")]
    expected = ["holds" if report.holds and report.layers else "differs" for report in EXAMPLES[name]]
    assert states == expected


def visible(text: str) -> str:
    """Text as displayed, with unprintable characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def test_a_comparison_of_nothing_is_no_success():
    text = Page(page(EXAMPLES["empty"])).text
    assert "nothing compared" in text
    assert "✓" not in text


def test_names_are_text():
    script = '<script>alert("x")</script>'
    text = page(EXAMPLES["odd"])
    assert script not in text
    assert text.count("<script") == text.count("</script") == 1
    parsed = Page(text)
    assert script in parsed.text  # and as text it is seen
    assert "<dd>&lt;/dl&gt;, a 1</dd>" in text
    assert "<li>&lt;/ul&gt;&lt;script&gt;</li>" in text
    assert "\x1b" not in text


def test_escape():
    assert escape('<a href="\'">&\x00\n') == "&lt;a href=&quot;&#x27;&quot;&gt;&amp;\\x00\n"


def test_every_number_has_its_mark():
    report = example_reports.differs()
    parsed = Page(page([report]))
    layers = parsed.figure("layers")
    assert layers["mark"] == 3 * len(report.layers)
    assert layers["hollow"] == sum(len(point.isolated) for point in report.layers)
    assert layers["failed"] == sum(len(point.failures()) for point in report.layers) > 100
    assert layers["ring"] == layers["culprit"] == len(report.culprits()) == 1
    assert layers["slot"] == len(report.layers)
    assert (layers["limit"], layers["noise"], layers["beyond"]) == (1, 1, 1)
    assert layers["stage"] == 5  # the stem, four stages, the head
    assert layers["first"] == 2  # a line and its text
    gradients = parsed.figure("gradients")
    assert gradients["mark"] == 3 * len(report.gradients)
    assert gradients["failed"] == sum(len(point.failures()) for point in report.gradients) > 0
    close = parsed.figure("close")
    assert close["slot"] == 25
    growth = [figure for figure in parsed.figures if figure["figure growth"]]
    assert len(growth) == 4
    for figure in growth:
        assert figure["failed"] == 20
        assert figure["ulp"] == figure["limit"] == 1
        assert [figure[colour] for colour in ("k0", "k1", "k2")] == [1, 1, 1]
    bars = parsed.figure("histogram")["bar"]
    assert report.histogram
    assert bars == sum(count > 0 for count in report.histogram.counts) + 1


def test_a_report_that_holds_has_nothing_red():
    parsed = Page(page(EXAMPLES["holds"]))
    for figure in parsed.figures:
        assert not figure["failed"] + figure["ring"] + figure["first"] + figure["figure close"]
    assert not any("wrong" in a.get("class", "").split() for _, a in parsed.elements)


@pytest.mark.parametrize("count", [1, 2, 800])
def test_any_number_of_layers(count):
    report = example_reports.holds()
    report.layers = (report.layers * 5)[:count]
    assert len(report.layers) == count
    report.gradients, report.training, report.histogram = [], None, None
    parsed = Page(page([report]))
    assert [figure["slot"] for figure in parsed.figures] == [count]
    assert parsed.figures[0]["mark"] == 3 * count


def test_800_layers_that_differ():
    parsed = Page(page([example_reports.deep(800)]))
    assert parsed.figure("layers")["failed"] == 400
    assert parsed.figure("close")["failed"] == 13


def heights(text: str, kind: str, css: str) -> list[float]:
    figure = text.split(f'<figure class="{kind}">')[1].split("</figure>")[0]
    return [float(d) for d in re.findall(rf'class="{css}[^"]*" d="M[\d.]+ ([\d.]+)', figure)]


def test_zero_lies_at_the_bottom_and_infinity_and_nan_at_the_top():
    nan, inf = math.nan, math.inf
    layers = [Point(f"p{i}", (), {"torch": e}, 1e-12) for i, e in enumerate((0.0, 1e-16, 1e-10, inf, nan))]
    text = page([Report("edges", "numpy", ["torch"], "float64", layers=layers)])
    zero, small, big, infinite, not_a_number = heights(text, "layers", "mark")
    assert zero > small > big > infinite == not_a_number > 0
    parsed = Page(text)
    assert parsed.figure("layers")["failed"] == 3
    assert parsed.figure("layers")["edge"] == 2
    assert "torch differs first at layer p2" in parsed.text
    for shown in ("∞", "NaN"):
        assert f">{shown}</td>" in text


def test_the_table_starts_with_what_is_wrong_by_itself():
    report = example_reports.differs()
    rows = page([report]).split('<table class="worst">')[1].split("<tr>")[2:]
    names = [re.findall('<td class="name">(.*?)</td>', row)[0] for row in rows]
    others = sorted(report.layers + report.gradients, key=lambda point: -point.times_limit())
    assert names == ["layer2.1.bn2", *(point.name for point in others if point.name != "layer2.1.bn2")][:20]


def test_times_limit():
    point = Point("p", (), {"a": 3.0, "b": math.nan, "c": 0.0}, 2.0)
    assert [point.times_limit(name) for name in ("a", "b", "c", None)] == [1.5, math.inf, 0, math.inf]
    assert Point("p", (), {"a": 1e-300}, 0.0).times_limit() == math.inf
    assert Point("p", (), {"a": 0.0}, 0.0).times_limit() == 0
    assert Point("p", (), {}, 1.0).times_limit() == 0


def test_axes():
    axis = LogAxis([1e-3, 10.0], 0, 100)
    assert [label for _, label in axis.ticks()] == ["1e-3", "1e-2", "1e-1", "1e0", "1e1", "1e2"]
    assert axis(1e-3) == 100
    assert axis(0.1) == pytest.approx(60)
    wide = LogAxis([5e-324, 1.7e308], 0, 100)
    assert len(wide.ticks()) <= 10
    assert all(0 <= wide(value) <= 100 for value in (5e-324, 1.0, 1.7e308))
    linear = LinearAxis([0.3, 7.1], 0, 100)
    assert [label for _, label in linear.ticks()] == ["0", "2", "4", "6", "8"]
    assert linear(8) == 0
    for values in ([], [2.0], [math.nan], [0.0], [-1e300, 1e300]):
        assert len(LinearAxis(values, 0, 100).ticks()) >= 2
        assert len(LogAxis(values, 0, 100).ticks()) >= 2


def test_gradients_are_sorted_by_depth():
    layers = ["conv1", "bn1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "fc"]
    names = ["fc.weight", "layer2", "layer1", "input", "layer1.1.conv1.weight", "bn1.bias", "bn1.weight"]
    found = by_depth([Point(name, (), {}, 1.0) for name in names], layers)
    expected = ["input", "bn1.bias", "bn1.weight", "layer1", "layer1.1.conv1.weight", "layer2", "fc.weight"]
    assert [point.name for point in found] == expected
    unknown = by_depth([Point(name, (), {}, 1.0) for name in names], [])
    assert [point.name for point in unknown][1:] == [name for name in names if name != "input"]


def test_a_framework_has_one_colour_everywhere():
    only_tf1 = example_reports.holds()
    only_tf1.candidates = ["mine", "tf1"]
    for report in only_tf1.layers:
        report.errors = {"mine": 1e-16, "tf1": report.errors["tf1"]}
    for text in (page([only_tf1]), page([only_tf1, EXAMPLES["holds"][0]]), page(EXAMPLES["holds"])):
        assert re.search(r'<g class="k2"><path class="mark" d="[^"]+"/></g></svg>tf1</td>', text)
        assert not re.search(r'<g class="k[^2]"><path class="mark" d="[^"]+"/></g></svg>tf1</td>', text)
    assert re.search(r'<g class="k3"><path class="mark" d="[^"]+"/></g></svg>mine</td>', page([only_tf1]))


def test_equal_losses_are_dashed_in_turns_and_others_drawn_through():
    def dashes(report: Report) -> list[str]:
        figure = page([report]).split('<figure class="loss">')[1].split("</figure>")[0]
        return re.findall(r'class="curve" stroke-dasharray="([\d ]+)" stroke-dashoffset="(-?\d+)"', figure)

    assert dashes(EXAMPLES["holds"][0]) == [("9 18", "0"), ("9 18", "-9"), ("9 18", "-18")]
    assert dashes(EXAMPLES["differs"][0]) == [("9 9", "0"), ("9 9", "-9")]


def test_steps_that_are_not_held_to_the_limit_are_not_marked():
    report = example_reports.differs()
    assert isinstance(report.training, Training)
    report.training.checked_steps = 1
    parsed = Page(page([report]))
    assert [figure["failed"] for figure in parsed.figures if figure["figure growth"]] == [1] * 4
    assert "Only the first 1 step is held to the limit." in parsed.text


def test_thousands_of_steps():
    parsed = Page(page([example_reports.holds(steps=5000)]))
    assert 100 < parsed.figure("loss")["slot"] <= 200


def test_with_many_reports_those_that_hold_are_folded():
    reports = [example_reports.holds(f"number {i}") for i in range(3)] + [example_reports.differs()]
    assert page(reports).count("<details>") == 3
    assert page(reports).count("<details open>") == 1
    assert page(reports[:2]).count("<details open>") == 2


def test_equal_reports_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_page([example_reports.differs(), example_reports.odd()], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_reason_for_a_failed_write(tmp_path):
    with pytest.raises(WriteError, match="could not be written \\(No such file or directory\\)"):
        write_page([], tmp_path / "missing" / "page.html")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def chromium(folder: Path, *arguments: str) -> str:
    """The output of a headless Chromium; fails on any console message of the page."""
    assert CHROMIUM
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update"
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet.split()),
            *("--enable-logging=stderr", "--hide-scrollbars", "--window-size=1240,2400"),
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout


@browser
def test_a_browser_finds_every_mark(tmp_path):
    report = example_reports.differs()
    write_page([report], tmp_path / "page.html")
    dom = Page(chromium(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri()).replace("&nbsp;", " "))
    assert dom.figure("layers")["mark"] == 3 * len(report.layers)
    assert dom.figure("layers")["failed"] == sum(len(point.failures()) for point in report.layers)
    assert str(report.first_divergence()) in dom.text


@browser
def test_the_arrow_keys_go_from_layer_to_layer(tmp_path):
    text = page([example_reports.differs()])
    script = """<script>
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
document.querySelector(".layers .slot[tabindex='0']").focus();
for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "x"]) press(key);
const seen = text => getComputedStyle(text).display != "none";
const named = [...document.querySelectorAll(".slot text")].filter(seen);
document.title = named.map(text => text.textContent.split(" ")[0]).join();
</script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", script), encoding="utf-8")
    dom = chromium(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    assert "<title>layer2.1.act2</title>" in dom


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_paints_it(tmp_path, scheme):
    """Each colour of a framework, of the verdict and of the background covers the expected area."""
    image = pytest.importorskip("PIL.Image")
    write_page([example_reports.holds(), example_reports.differs()], tmp_path / "page.html")
    preferred = "--blink-settings=preferredColorScheme=" + ("0" if scheme == "dark" else "1")
    target = tmp_path / "page.png"
    chromium(tmp_path, preferred, f"--screenshot={target}", (tmp_path / "page.html").as_uri())
    with image.open(target) as shot:
        assert shot.size == (1240, 2400)
        colours = Counter(shot.convert("RGB").get_flattened_data())
    css = (Path(example_reports.__file__).parents[1] / "compare" / "page.css").read_text(encoding="utf-8")
    part = css.split("@media")[1 if scheme == "dark" else 0]
    values = {name: tuple(bytes.fromhex(value)) for name, value in re.findall(r"--([\w-]+): #(\w{6});", part)}
    assert colours.most_common(1)[0][0] == values["paper"]
    for name, least in {"good-box": 20_000, "bad-box": 20_000, "k0": 500, "k1": 500, "k2": 500}.items():
        assert colours[values[name]] > least, name


@browser
def test_the_browser_tests_see_what_the_console_says(tmp_path):
    (tmp_path / "page.html").write_text("<script>missing()</script>", encoding="utf-8")
    with pytest.raises(AssertionError, match="missing is not defined"):
        chromium(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
