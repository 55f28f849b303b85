"""The picture of the architecture: what it shows is what the imports give, and it is current."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tools import draw_architecture as drawing
from tools.draw_architecture import Room, house, layers, svg, thinned
from tools.import_graph import module_graph

MODULES = {
    "harness/__init__.py": '"""The harness: and more."""',
    "harness/cli.py": "from harness.run import work",
    "harness/errors.py": "",
    "harness/run/__init__.py": '"""Running cells, `one` at a time. More of it."""',
    "harness/run/work.py": "from harness.data import texts\nimport harness.errors, quant.grid",
    "harness/data/__init__.py": '"""Text."""',
    "harness/data/texts.py": "import harness.errors",
    "quant/__init__.py": "from quant import grid",
    "quant/grid.py": "def late():\n    import cuda_ext.ops",
    "cuda_ext/__init__.py": '"""Kernels."""',
    "cuda_ext/ops.py": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_rooms_rows_and_arrows_are_those_of_the_imports(root: Path) -> None:
    drawn = house(root)
    rows = {
        floor: [[thing.words for thing in row if isinstance(thing, Room)] for row in each]
        for floor, each in drawn.rows.items()
    }
    assert rows == {
        "harness": [["cli"], ["Running cells, one at a time"], ["Text"], ["errors"]],
        "quant": [["grid"]],
        "cuda_ext": [["ops"]],
    }
    arrows = [(start.words, end.words) for start, end in drawn.arrows]
    # run imports errors as well, which it reaches through data.
    assert sorted(arrows) == [
        ("Running cells, one at a time", "Text"),
        ("Text", "errors"),
        ("cli", "Running cells, one at a time"),
    ]
    assert list(drawn.floors) == [("harness", "quant"), ("quant", "cuda_ext")]


def test_of_two_directions_the_heavier_is_drawn_and_long_ways_make_arrows_superfluous() -> None:
    weights = {("a", "b"): 5, ("b", "a"): 1, ("b", "c"): 2, ("a", "c"): 9, ("c", "b"): 1}
    assert thinned(weights) == [("a", "b"), ("b", "c")]
    assert thinned({("a", "b"): 1, ("b", "a"): 1}) == [("a", "b")], "ties by name"


def test_an_arrow_that_passes_a_row_has_a_lane_in_it() -> None:
    a, b, c, d = (Room("quant", name, "") for name in "abcd")
    rows = layers([a, b, c, d], [(a, b), (b, c), (a, d), (d, c)])
    assert rows == [[a], [b, d], [c]]
    rows = layers([a, b, c], [(a, b), (b, c), (a, c)])
    assert rows[1] == [b, drawing.Lane(a, c)]


def test_the_picture_is_whole_and_always_the_same(root: Path) -> None:
    text = svg(house(root))
    assert text == svg(house(root))
    tree = ElementTree.fromstring(text)
    width, height = map(float, tree.attrib["viewBox"].split()[2:])
    boxes = [
        [float(each.attrib[key]) for key in ("x", "y", "width", "height")]
        for each in tree.iter("{http://www.w3.org/2000/svg}rect")
        if each.attrib["class"] == "room"
    ]
    assert len(boxes) == 6
    for index, (x, y, wide, high) in enumerate(boxes):
        assert 0 <= x <= width - wide
        assert 0 <= y <= height - high
        for other, (left, top, _, _) in enumerate(boxes):
            assert index == other or abs(left - x) >= wide or abs(top - y) >= high, "rooms overlap"
    assert len(re.findall('class="arrow"', text)) == 3
    assert len(re.findall('class="down"', text)) == 2
    assert "prefers-color-scheme: dark" in text


def test_every_colour_of_the_light_picture_has_one_for_dark_pages() -> None:
    light, dark = drawing.STYLE.split("@media")
    named = set(re.findall(r"\.(\w+)[^{}]*\{[^}]*(?:fill|stroke): #", light))
    assert named == set(re.findall(r"\.(\w+)", dark))


def test_a_picture_that_is_not_current_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "PICTURE", tmp_path / "a.svg")
    assert drawing.main(["--check"]) == 1
    assert "run `make architecture`" in capsys.readouterr().out
    assert drawing.main([]) == 0
    assert drawing.main(["--check"]) == 0


def test_the_kept_picture_is_current() -> None:
    assert drawing.main(["--check"]) == 0, "run `make architecture`"


def test_late_imports_count(root: Path) -> None:
    assert module_graph(root, ["quant", "cuda_ext"])["quant.grid"] == {"cuda_ext.ops": 2}
