"""Pages that are shared: well-formed, in one file, escaped, and with what a reader came for."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvcalc.report.content import Grid, Story, cell
from kvcalc.report.figures import BYTES, FLOP_RATE, SECONDS, TOKENS, Axis, Chart, Point, Series, tick_label, ticks
from kvcalc.report.html import render
from kvcalc.report.story import tell
from tests.check.made import case, profile, write
from tests.command_line import call

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</title><script>alert(1)</script>\"><img src=x onerror=alert(2)>\x1b[31m & 'q'"


class Checked(HTMLParser):
    """Fails on a tag that is not closed in its place, on an id that stands twice, and on anything that is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.scripts = 0
        self.referred: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        assert all(name in self.ids for names in self.referred for name in names.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            assert name not in ("src", "srcset", "action", "formaction", "data", "poster", "xlink:href"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert tag == "a"
                assert value.startswith("#")
                self.referred.append(value[1:])
            if name == "id":
                self.ids.append(value)
            if name == "aria-labelledby":
                self.referred.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def assert_self_contained(text: str) -> Checked:
    page = Checked(text)
    assert text.startswith("<!doctype html>")
    assert page.scripts == 1
    without_data = re.sub(r"<(dd|td|small|pre).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_data)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy
    return page


@pytest.fixture
def results(capsys, tmp_path, monkeypatch):
    """A result of each kind, in files."""
    monkeypatch.chdir(tmp_path)
    short = "mla-512+64-h16-decode-b1-n128-q1-bf16"
    made = [case(), case(short, kernel="flashmla", seed=3, median_s=2e-5, bytes=10**6)]
    write(tmp_path / "profile.json", profile(*made))
    write(tmp_path / "slower.json", profile(case(median_s=1.2e-4, seed=2), made[1]))
    for name, args in {
        "estimate": ("estimate", "deepseek-v3", "--gpu", "h200-sxm-141gb", "--tp", "8", "--explain"),
        "compare": ("compare", "deepseek-v3", "llama-3.1-8b", "gemma-3-27b"),
        "check": ("check", "profile.json", "slower.json"),
    }.items():
        call(capsys, *args, "--json", "-o", f"{name}.json")
    Path("predict.csv").write_text(
        "attention,batch,context_tokens,latency_us,roofline_us,expected_us,low_us,high_us,bound\n"
        "mla,8,4096,10.5,8,10,9,12,memory\nmha,8,4096,110,80,100,90,108,memory\n"
    )
    return ["estimate.json", "compare.json", "profile.json", "predict.csv", "check.json"]


def report(capsys, *paths: str, output: str = "report.html") -> str:
    result = call(capsys, "report", *paths, "-o", output)
    assert (result.code, result.out, result.err) == (0, "", "")
    return Path(output).read_text(encoding="utf-8") if not output.endswith(".png") else ""


def test_one_page_with_all_that_was_asked_for(capsys, results):
    text = report(capsys, *results)
    page = assert_self_contained(text)
    said = " ".join(page.text)
    for words in (
        "61 layers x (512 latent + 64 rope) in bf16, 1,152 B an entry: 70,272 B a token",
        "KV cache against context",
        "61 x MHA",
        "61 x GQA-8",
        "61 x MQA",
        "61 x MLA 512+64",
        "Where a decode step's time goes",
        "Roofline",
        "measured bf16 roofline",
        "Predicted against measured",
        "1 of 2 measured times are inside theirs",
        "Machine and versions",
        "NVIDIA H200",
        "2.13.0",
        "kvcalc estimate deepseek-v3 --context 32768 --gpu h200-sxm-141gb --tp 8",
        "kvcalc profile deepseek-v3 --tp 8",
        "verdict: regressed",
        "Every number as a formula",
    ):
        assert words in said, words
    assert page.tags.count("svg") == len(re.findall("<svg role=.img. aria-labelledby", text))
    assert page.tags.count("title") == 1 + text.count("<title") - 1


def test_each_kind_alone(capsys, results):
    for path in results:
        assert_self_contained(report(capsys, path))


def test_the_command_on_the_page_gives_the_estimate_again(capsys, results):
    command = re.search(r"<code>kvcalc (estimate [^<]*)</code>", report(capsys, "estimate.json"))[1]
    again = call(capsys, *command.split(), "--explain", "--json").json()
    assert again == json.loads(Path("estimate.json").read_text())


def test_it_is_accessible_by_its_markup(capsys, results):
    text = report(capsys, *results)
    assert '<html lang="en">' in text
    assert 'href="#main">Skip to the content</a>' in text
    for svg in re.findall(r"<svg[^>]*>.*?</svg>", text, re.DOTALL):
        assert re.match(r'<svg role="img" aria-labelledby="(f\d+-\d+)-t \1-d"', svg)
        assert re.search(r"<title id=[^>]*>[^<]+</title><desc id=[^>]*>[^<]+</desc>", svg)
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        assert re.match(r"<table><caption>[^<]+</caption><thead><tr><th scope=\"col\"", table)
    for heads in re.findall(r"<thead>.*?</thead>", text, re.DOTALL):
        assert heads.count("<th ") == heads.count('<button type="button">')
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_light_and_dark():
    """WCAG 2.2: 4.5 for text, 3 for marks."""
    text = render(Story(title="x", made_by="y"))
    themes = text.split("prefers-color-scheme: dark")[:2]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", theme)) for theme in themes)
    needed = dict.fromkeys(("ink", "soft", "link", "bad", "good"), 4.5) | {f"c{index}": 3 for index in range(8)}
    for colours in (light, dark):
        for name, least in needed.items():
            for ground in ("paper", "panel"):
                one, other = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (other + 0.05) / (one + 0.05) >= least, (name, ground)


# --- hostile input ----------------------------------------------------------------------------------------------------


def test_hostile_texts_are_shown_as_they_are(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = profile(
        case(HOSTILE, kernel=HOSTILE, attention=HOSTILE, bound=HOSTILE),
        model={"name": HOSTILE, "title": HOSTILE},
        gpu=HOSTILE,
        command=HOSTILE,
        warnings=[HOSTILE],
        skipped=[{"kernel": HOSTILE, "case": HOSTILE, "reason": HOSTILE}],
    )
    write(tmp_path / "a.json", document)
    write(tmp_path / "b.json", {"schema": "kvcalc.compare/1", "rows": [{"model": HOSTILE, "bytes_per_token": 5}] * 2})
    text = report(capsys, "a.json", "b.json")
    page = Checked(text)
    assert page.scripts == 1
    assert "img" not in page.tags
    assert "\x1b" not in text
    assert "alert(1)" in " ".join(page.text)
    svg = report(capsys, "a.json", output="a.svg")
    assert {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()} <= {
        *("svg", "title", "style", "rect", "text", "g", "path"),
    }
    assert "<script" not in report(capsys, "a.json", "b.json", output="a.md").replace("\\<script", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"cases": None},
        {"cases": [{}]},
        {"cases": ["x", 3, None]},
        {"ceilings": "none"},
        {"ceilings": {"read_bandwidth_bytes_per_s": "fast", "matmul_flop_per_s": [1]}},
        {"environment": None},
        {"environment": {"device": {"name": ["x"]}}},
        {"model": None},
        {"model": {"name": 7}},
        {"warnings": "all"},
        {"cases": [{"flop": 1, "bytes": 0, "median_s": -1, "predicted": {"expected_s": True}}]},
        {"cases": [{"flop": 10**50, "bytes": 1, "median_s": 1e-300, "predicted": {"expected_s": 1e300}}]},
    ],
    ids=range(12),
)
def test_odd_values_are_left_out_and_nothing_breaks(capsys, tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", profile() | changes)
    assert_self_contained(report(capsys, "a.json"))


def test_a_models_name_is_never_taken_for_a_path(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("name: [")
    write(tmp_path / "a.json", profile(model={"name": str(tmp_path / "x.yaml")}))
    report(capsys, "a.json")


# --- the other formats ------------------------------------------------------------------------------------------------


def test_markdown_and_svg(capsys, results):
    text = report(capsys, *results, output="report.md")
    assert text.startswith("## kvcalc: DeepSeek-V3")
    assert "70,272 B a token" in text
    root = ElementTree.fromstring(report(capsys, *results, output="report.svg"))
    said = "".join(root.itertext())
    for words in (
        "KV cache against context",
        "Roofline",
        "Predicted against measured",
        "Where a decode step's time goes",
    ):
        assert words in said


def test_png_or_the_line_that_installs_it(capsys, results):
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        result = call(capsys, "report", *results, "-o", "report.png")
        assert result.code == 2
        assert result.err.splitlines()[1] == "hint: pip install 'kvcalc[plot]'"
        assert not Path("report.png").exists()
    else:
        report(capsys, *results, output="report.png")
        assert Path("report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("profile.json", "-o", "report.pdf"), "can't write a report as 'report.pdf'"),
        (("profile.json",), "--output"),
        (("none.json", "-o", "r.html"), "no such file"),
        (("empty.json", "-o", "r.svg"), "nothing to draw"),
        (("profile.json", "-o", "nowhere/r.html"), "can't write"),
    ],
    ids=["ending", "no-output", "missing", "no-figure", "no-folder"],
)
def test_wrong_usage(capsys, results, args, message):
    write(Path("empty.json"), {"schema": "kvcalc.compare/1", "rows": []})
    result = call(capsys, "report", *args)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


# --- parts ------------------------------------------------------------------------------------------------------------


def test_sorting_has_a_number_for_every_number():
    grid = Grid(
        title="t",
        columns=["name", "time", "mixed"],
        rows=[[cell("b"), cell("10 us", 1e-5), cell("x")], [cell("a"), cell("-"), cell("1", 1)]],
    )
    assert grid.numeric == [False, True, False]
    text = render(tell([], made_by="x"))
    assert_self_contained(text)


@pytest.mark.parametrize(
    ("low", "high", "unit", "labels"),
    [
        (1024, 131072, TOKENS, ["1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k"]),
        (1 << 20, 1 << 34, BYTES, ["1 MiB", "4 MiB", "16 MiB", "64 MiB", "256 MiB", "1 GiB", "4 GiB", "16 GiB"]),
        (8e-6, 1.2e-4, SECONDS, ["10 us", "20 us", "50 us", "100 us"]),
        (1e12, 1e15, FLOP_RATE, ["1 TFLOP/s", "10 TFLOP/s", "100 TFLOP/s", "1 PFLOP/s"]),
    ],
    ids=["tokens", "bytes", "seconds", "flops"],
)
def test_ticks_are_round(low, high, unit, labels):
    assert [tick_label(value, unit) for value in ticks(low, high, unit)] == labels


@pytest.mark.parametrize("factor", [1, 1.01, 3, 1e3, 1e9, 1e40])
@pytest.mark.parametrize("unit", [TOKENS, BYTES, SECONDS, FLOP_RATE])
def test_every_range_has_a_few_ticks(unit, factor):
    chart = Chart(
        title="",
        caption="",
        x=Axis(label="", unit=unit),
        y=Axis(label="", unit=unit),
        series=[Series(name="", points=[Point(x=7, y=7), Point(x=7 * factor, y=7 * factor)])],
    )
    assert 1 <= len(ticks(*chart.range_x(), unit)) <= 9


def test_a_page_of_5000_cases_is_made_quickly(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [case(f"mla-512+64-h16-decode-b{index}-n4096-q1-bf16", seed=index % 7) for index in range(1, 5001)]
    write(tmp_path / "a.json", profile(*cases))
    start = time.process_time()
    text = report(capsys, "a.json")
    assert time.process_time() - start < 10
    assert text.count("<tr>") == 5001
    assert len(text) < 8_000_000
