"""JUnit XML, GitHub's annotations and job summary, as their readers want them."""

import re
from xml.etree import ElementTree

import pytest

from kvcalc.check.findings import Settings
from kvcalc.check.results import Row, Samples
from kvcalc.check.verdicts import compare
from kvcalc.report import github, junit
from tests.check.made import case, profile, write
from tests.command_line import call

STAMP = "2026-01-31T12:00:00"
HOSTILE = 'a]]> & "b" <c> % :: ,\r\n::error::x ##[add-mask]y \x00\x1b[31m\ud800 | `$(x)`'


def result(names: list[str], *, strict: bool = False) -> dict:
    """A check with a row of each verdict for every name."""
    before, now = [], []

    def times(median_s: float, count: int = 30) -> Samples:
        values = tuple(median_s * (1 + 0.001 * (index % 7)) for index in range(count))
        return Samples(seconds=values, median_s=median_s, bound="memory", ceiling=4e12, fraction=0.8)

    for name in names:
        for kind, old, new in (
            ("same", 1, 1),
            ("worse", 1, 2),
            ("better", 2, 1),
            ("gone", 1, None),
            ("new", None, 1),
        ):
            for value, side in ((old, before), (new, now)):
                if value is not None:
                    side.append(Row(key={"name": name, "kind": kind}, metrics={"bytes": value}))
        for gpu, side in (("a", before), ("b", now)):
            side.append(Row(key={"name": name, "kind": "gpu"}, about={"gpu": gpu}, metrics={"bytes": 1}))
        before.append(Row(key={"name": name, "kind": "time"}, samples=times(1e-4)))
        now.append(Row(key={"name": name, "kind": "time"}, samples=times(1.2e-4)))
        before.append(Row(key={"name": name, "kind": "few"}, samples=times(1e-4, 5)))
        now.append(Row(key={"name": name, "kind": "few"}, samples=times(1.2e-4, 5)))
    return compare(before, now, Settings(strict=strict)).to_json()


# --- JUnit ------------------------------------------------------------------------------------------------------------

# The rules of JUnit.xsd (windyroad) and of Jenkins' junit-10.xsd where both have them: attributes, whether they are
# needed, and children in their order.
ATTRIBUTES = {
    "testsuites": ({}, ("testsuite",)),
    "testsuite": (
        {
            "name": ".+",
            "package": ".*",
            "id": r"\d+",
            "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
            "hostname": ".+",
            "tests": r"\d+",
            "failures": r"\d+",
            "errors": r"\d+",
            "skipped": r"\d+",
            "time": r"\d+(\.\d+)?",
        },
        ("properties", "testcase", "system-out", "system-err"),
    ),
    "properties": ({}, ("property",)),
    "property": ({"name": ".+", "value": ".*"}, ()),
    "testcase": ({"name": ".+", "classname": ".+", "time": r"\d+(\.\d+)?"}, ("skipped", "error", "failure")),
    "skipped": ({"message": ".+"}, ()),
    "error": ({"type": ".+", "message": ".+"}, ()),
    "failure": ({"type": ".+", "message": ".+"}, ()),
    "system-out": ({}, ()),
    "system-err": ({}, ()),
}
ONCE = {"properties", "system-out", "system-err", "skipped", "error", "failure"}


def assert_valid(element: ElementTree.Element) -> None:
    attributes, children = ATTRIBUTES[element.tag]
    assert set(element.attrib) == set(attributes), element.tag
    for name, pattern in attributes.items():
        assert re.fullmatch(pattern, element.attrib[name], re.DOTALL), (element.tag, name, element.attrib[name])
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order), element.tag
    for tag in ONCE & {child.tag for child in element}:
        assert len(element.findall(tag)) == 1
    if element.tag == "testcase":
        assert len(element) <= 1
    for child in element:
        assert_valid(child)


@pytest.mark.parametrize("names", [["m"], [HOSTILE], [], [f"m{index}" for index in range(50)]], ids=len)
@pytest.mark.parametrize("strict", [False, True])
def test_junit_is_valid_and_counts_right(names, strict):
    data = result(names, strict=strict)
    text = junit.render(data, timestamp=STAMP)
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert_valid(root)
    (suite,) = root
    for tag, name in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert suite.get(name) == str(len(list(suite.iter(tag))))
    assert int(suite.get("failures")) == (3 if strict else 2) * len(names)
    assert int(suite.get("errors")) == len(names)
    assert suite.find("system-out").text == data["sentence"]


# --- GitHub -----------------------------------------------------------------------------------------------------------

COMMAND = re.compile(r"::(?P<level>error|warning|notice)(?: (?P<properties>[^:]*))?::(?P<message>.*)")


def parsed(line: str) -> dict[str, str]:
    """An annotation as the runner reads it."""
    match = COMMAND.fullmatch(line)
    assert match, line
    found = {"level": match["level"], "message": match["message"]}
    for pair in match["properties"].split(","):
        name, _, value = pair.partition("=")
        found[name] = value
    for name, value in found.items():
        for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            value = value.replace(escaped, plain)
        found[name] = value
    return found


def test_annotations_parse_and_come_back_as_they_were():
    *lines, last = github.annotations(result([HOSTILE])).rstrip("\n").split("\n")
    found = [parsed(line) for line in lines]
    assert [each["level"] for each in found] == ["error", "error", "error", "warning"]
    assert {each["title"].partition(":")[0] for each in found} == {"regressed", "not comparable", "gone"}
    assert all(Row(key={"name": HOSTILE}).id in each["title"] for each in found)
    assert last.startswith("verdict: ")
    assert "\r" not in "".join(lines)


def test_a_check_that_fails_has_an_error_among_its_annotations():
    """Nothing in common is exit code 3, and in a strict lock a new row is exit code 1."""
    one, other = (Row(key={"name": name}, metrics={"bytes": 1}) for name in "ab")
    first = github.annotations(compare([one], [other], Settings()).to_json()).splitlines()[0]
    assert parsed(first)["level"] == "error"
    assert "no row stands on both sides" in parsed(first)["message"]
    locked = compare([one], [one, other], Settings(strict=True, locked=True)).to_json()
    assert locked["exit_code"] == 1
    assert parsed(github.annotations(locked).splitlines()[0])["title"] == "new: b"
    assert 'failures="1"' in junit.render(locked, timestamp=STAMP)


def test_annotations_are_as_many_as_github_shows():
    lines = github.annotations(result([f"m{index}" for index in range(200)])).splitlines()
    levels = [parsed(line)["level"] for line in lines[:-1]]
    assert levels.count("error") == 10
    assert levels.count("warning") == 10
    assert "more" in parsed(lines[9])["message"]


@pytest.mark.parametrize("name", ["m", "x" * 200, HOSTILE], ids=["short", "long", "hostile"])
def test_the_summary_of_5000_rows_stays_below_the_limit(name):
    data = result([f"{name} {index}" for index in range(900)])
    assert len(data["rows"]) >= 5000
    text = github.summary(data)
    assert len(text.encode("utf-8", "surrogatepass")) < 1 << 20
    assert text.startswith("## kvcalc check: regressed\n")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table[2].startswith("| regressed")
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in table)
    assert "<c>" not in text
    shown = len(table) - 2
    if shown < sum(row["verdict"] != "same" for row in data["rows"]):
        assert re.search(r"[\d,]+ more rows: no room for them here\.", text)


def test_a_summary_fits_what_is_left():
    data = result([f"m{index}" for index in range(100)])
    assert len(github.summary(data, room_bytes=2000).encode()) <= 2000
    assert github.summary(data, room_bytes=20) == ""


def test_the_summary_goes_where_github_reads_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    paths = [
        write(tmp_path / "a.json", profile()),
        write(tmp_path / "b.json", profile(case(median_s=1.2e-4, seed=2))),
    ]
    found = call(capsys, "check", *paths, "--format", "github")
    assert found.code == 1
    assert found.out.startswith("::error title=regressed%3A profile/deepseek-v3")
    assert summary.read_text().startswith("before\n## kvcalc check: regressed\n")


def test_junit_goes_into_an_xml_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.json", profile())
    found = call(capsys, "check", path, path, "-o", "junit.xml")
    assert found.code == 0
    assert found.err.startswith("verdict: same")
    assert_valid(ElementTree.parse("junit.xml").getroot())
