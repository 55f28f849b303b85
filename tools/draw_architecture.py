"""Draw docs/architecture.svg: the packages as floors, their folders as rooms, imports as arrows.

  python -m tools.draw_architecture           draw it
  python -m tools.draw_architecture --check   exit 1 when it is not what the imports give

Everything in the picture is read from the source: rooms and their words from the packages' own
docstrings, arrows from the import statements. A room that reaches another through a third has no
arrow of its own to it. Where two rooms import each other, the heavier direction is drawn. Between
two floors there is one arrow: a room may import any room of a lower floor.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tools.import_graph import module_graph

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "architecture.svg"
FLOORS = ("bitsweep", "harness", "quant", "cuda_ext")  # from top to bottom

MARGIN, ROOM_WIDTH, ROOM_HEIGHT, GAP = 20, 226, 74, 18
HEAD, BETWEEN_ROWS, BETWEEN_FLOORS, LINE, LETTERS = 46, 30, 40, 14, 34
LANE = 16  # the width that an arrow takes where it passes a row between rooms

STYLE = """
  svg { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
  .page { fill: #ffffff; }
  .floor { fill: #f3f5f8; stroke: #d5dbe3; }
  .room { fill: #ffffff; stroke: #8d9bb0; }
  .title { font-size: 17px; font-weight: 700; fill: #1b2533; }
  .name { font-size: 13px; font-weight: 600; fill: #1b2533; }
  .words { font-size: 11px; fill: #4b5a70; }
  .arrow { fill: none; stroke: #5b7db1; stroke-width: 1.5; }
  .down { fill: none; stroke: #b5651d; stroke-width: 2.5; }
  .head { fill: #5b7db1; }
  .downhead { fill: #b5651d; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    .floor { fill: #161c26; stroke: #2d3748; }
    .room { fill: #222b39; stroke: #5f7089; }
    .title, .name { fill: #e8edf4; }
    .words { fill: #aab7c9; }
    .arrow { stroke: #7fa6e0; }
    .down { stroke: #e39a52; }
    .head { fill: #7fa6e0; }
    .downhead { fill: #e39a52; }
  }
"""


@dataclass(frozen=True)
class Room:
    """A folder of a package, or modules that lie in the package itself."""

    floor: str
    name: str
    words: str


@dataclass(frozen=True)
class Lane:
    """Where an arrow passes a row on its way from one room to another."""

    start: Room
    end: Room


@dataclass(frozen=True)
class House:
    """The rows of every floor, which room has an arrow to which, and which floor to which."""

    rows: Mapping[str, Sequence[Sequence[Room | Lane]]]
    arrows: Sequence[tuple[Room, Room]]
    floors: Sequence[tuple[str, str]]


def room_names(graph: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """The floor and the room of every module.

    Modules that lie in the package itself are two rooms: "entry" for those that no folder reaches
    and that reach folders or other packages, such as the command line, and "base" for the others.
    """
    folders = {".".join(name.split(".")[:2]) for name in graph if name.count(".") >= 2}

    def in_folder(name: str) -> bool:
        return ".".join(name.split(".")[:2]) in folders

    own = {
        name: [other for other in imported if other.split(".")[0] == name.split(".")[0]]
        for name, imported in graph.items()
    }
    below = set().union(*(reach(own, name) for name in graph if in_folder(name)))

    def apart(name: str) -> str:
        uses = any(
            in_folder(other) or other.split(".")[0] != name.split(".")[0]
            for other in reach(graph, name)
        )
        return "entry" if uses and name not in below else "base"

    rooms = {}
    for name in graph:
        floor, _, rest = name.partition(".")
        rooms[name] = (floor, rest.partition(".")[0] if in_folder(name) else apart(name))
    return rooms


def thinned(weights: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Arrows without circles and without those that a longer way makes superfluous.

    In every circle the lightest arrow is left out, ties by name.
    """
    kept: dict[str, set[str]] = {}
    for start, end in sorted(weights, key=lambda pair: (-weights[pair], pair)):
        if start not in reach(kept, end) | {end}:
            kept.setdefault(start, set()).add(end)
    found = []
    for start, ends in kept.items():
        for end in ends:
            others = {start: ends - {end}, **{name: kept[name] for name in kept if name != start}}
            if end not in reach(others, start):
                found.append((start, end))
    return sorted(found)


def reach(arrows: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """Whatever can be reached from `start`, itself left out."""
    found: set[str] = set()
    left = list(arrows.get(start, ()))
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += arrows.get(name, ())
    return found


def layers(rooms: Sequence[Room], arrows: Sequence[tuple[Room, Room]]) -> list[list[Room | Lane]]:
    """Rows from top to bottom: every arrow leads to a lower row, and rows are as high as can be.

    An arrow that passes a row has a lane in it.
    """
    depth = dict.fromkeys(rooms, 0)
    for _ in rooms:
        for start, end in arrows:
            depth[end] = max(depth[end], depth[start] + 1)
    rows: list[list[Room | Lane]] = [[] for _ in range(max(depth.values()) + 1)]
    for room in rooms:
        rows[depth[room]].append(room)
    for start, end in arrows:
        for row in range(depth[start] + 1, depth[end]):
            rows[row].append(Lane(start, end))
    return rows


def ordered(
    rows: Sequence[Sequence[Room | Lane]], arrows: Sequence[tuple[Room, Room]]
) -> list[list[Room | Lane]]:
    """Rows with everything near the middle of what leads to it from above."""
    placed: dict[Room | Lane, float] = {}
    result = []
    for row in rows:
        middle = {}
        for thing in row:
            if isinstance(thing, Lane):
                above = [placed.get(thing, placed[thing.start])]
            else:
                ends = [(Lane(start, end), start) for start, end in arrows if end == thing]
                above = [placed[lane] if lane in placed else placed[start] for lane, start in ends]
            middle[thing] = sum(above) / len(above) if above else 0.5
        line = sorted(row, key=lambda thing: (middle[thing], str(thing)))
        placed |= {thing: (index + 0.5) / len(line) for index, thing in enumerate(line)}
        result.append(line)
    return result


def house(root: Path = REPOSITORY) -> House:
    """What the picture shows, from the import statements and docstrings under `root`."""
    graph = module_graph(root, FLOORS)
    rooms = room_names(graph)
    present = [floor for floor in FLOORS if (root / floor).is_dir()]
    between: Counter[tuple[str, str]] = Counter()
    within: dict[str, Counter[tuple[str, str]]] = {floor: Counter() for floor in present}
    for module, imported in graph.items():
        for other in imported:
            (floor, room), (below, there) = rooms[module], rooms[other]
            if floor != below:
                between[floor, below] += 1
            elif room != there and module != floor:  # a package's own __init__ names everything
                within[floor][room, there] += 1
    rows: dict[str, list[list[Room | Lane]]] = {}
    arrows: list[tuple[Room, Room]] = []
    for floor in present:
        # The __init__ of a package is what its folders are for: alone it is no room.
        whole = {name for name in graph if name.partition(".")[0] == floor} - {floor}
        names = sorted({rooms[name][1] for name in whole or {floor}})
        made = {name: described(root, floor, name, rooms) for name in names}
        found = [(made[start], made[end]) for start, end in thinned(within[floor])]
        rows[floor] = ordered(layers(list(made.values()), found), found)
        arrows += found
    pairs = thinned({(a, b): n for (a, b), n in between.items()})
    return House(rows, arrows, sorted(pairs, key=lambda pair: FLOORS.index(pair[0])))


def described(root: Path, floor: str, room: str, rooms: Mapping[str, tuple[str, str]]) -> Room:
    """A room with its words: its docstring, or the names of its modules."""
    if room in ("base", "entry"):
        own = [name for name, place in rooms.items() if place == (floor, room)]
        modules = [name.partition(".")[2] for name in own if "." in name]
        words = ", ".join(name for name in sorted(modules) if not name.startswith("_"))
        return Room(floor, f"{floor}/*.py", words or sentence(root / floor / "__init__.py"))
    return Room(floor, f"{floor}/{room}", sentence(root / floor / room / "__init__.py"))


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, up to its colon if it has one."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(said.split("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".").replace("`", "")


def wide(thing: Room | Lane) -> int:
    """How much of a row something takes."""
    return ROOM_WIDTH if isinstance(thing, Room) else LANE


def svg(drawn: House) -> str:
    """The picture."""
    widths = [
        sum(map(wide, row)) + GAP * (len(row) - 1) for rows in drawn.rows.values() for row in rows
    ]
    width = max(widths) + 2 * (MARGIN + GAP)
    places: dict[Room, tuple[float, float]] = {}
    lanes: dict[Lane, list[tuple[float, float]]] = {}
    bands: dict[str, tuple[float, float]] = {}
    y = float(MARGIN)
    for floor, rows in drawn.rows.items():
        top = y
        y += HEAD
        for row in rows:
            x = (width - sum(map(wide, row)) - GAP * (len(row) - 1)) / 2
            for thing in row:
                if isinstance(thing, Room):
                    places[thing] = (x, y)
                else:
                    lanes.setdefault(thing, []).append((x + LANE / 2, y))
                x += wide(thing) + GAP
            y += ROOM_HEIGHT + BETWEEN_ROWS
        y += GAP - BETWEEN_ROWS
        bands[floor] = (top, y)
        y += BETWEEN_FLOORS
    height = y - BETWEEN_FLOORS + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" role="img" '
        'aria-label="The packages of Bitsweep, their folders and what imports what">',
        "<!-- Drawn by tools/draw_architecture.py: change the imports, not this file. -->",
        f"<style>{STYLE}</style>",
        marker("head"),
        marker("downhead"),
        f'<rect class="page" width="{width}" height="{height:g}"/>',
    ]
    for floor, (top, bottom) in bands.items():
        parts.append(
            f'<rect class="floor" x="{MARGIN}" y="{top:g}" width="{width - 2 * MARGIN}" '
            f'height="{bottom - top:g}" rx="10"/>'
        )
        parts.append(f'<text class="title" x="{MARGIN + 16}" y="{top + 28:g}">{floor}</text>')
    parts += [arrow(Lane(*pair), drawn.arrows, places, lanes) for pair in drawn.arrows]
    for above, below in drawn.floors:
        down = f"M{width / 2:g} {bands[above][1]:g}V{bands[below][0] - 2:g}"
        parts.append(f'<path class="down" marker-end="url(#downhead)" d="{down}"/>')
    parts += [box(room, *place) for room, place in places.items()]
    return "\n".join([*parts, "</svg>", ""])


def marker(name: str) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" '
        f'markerWidth="9" markerHeight="9" orient="auto"><path class="{name}" d="M0 0L8 4L0 8z"/>'
        "</marker>"
    )


def arrow(
    drawn: Lane,
    arrows: Sequence[tuple[Room, Room]],
    places: Mapping[Room, tuple[float, float]],
    lanes: Mapping[Lane, Sequence[tuple[float, float]]],
) -> str:
    """A curve from the lower edge of one room to the upper edge of another, through its lanes."""

    def port(room: Room, down: bool) -> float:
        """Where on the room's edge this arrow ends: in the order of where arrows come from."""
        own = [Lane(*pair) for pair in arrows if pair[0 if down else 1] == room]

        def beside(lane: Lane) -> tuple[float, str]:
            passed = lanes.get(lane)
            there = lane.end if down else lane.start
            x = passed[0 if down else -1][0] if passed else places[there][0] + ROOM_WIDTH / 2
            return x, there.name

        index = sorted(own, key=beside).index(drawn)
        return places[room][0] + ROOM_WIDTH * (index + 1) / (len(own) + 1)

    x, y = port(drawn.start, True), places[drawn.start][1] + ROOM_HEIGHT
    path = f"M{x:.1f} {y:.1f}"
    stops = [(at, top, top + ROOM_HEIGHT) for at, top in lanes.get(drawn, ())]
    last = places[drawn.end][1] - 2
    for to_x, to_y, leave in [*stops, (port(drawn.end, False), last, last)]:
        bend = (to_y - y) / 2
        path += f"C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        path += f"V{leave:.1f}" if leave > to_y else ""
        x, y = to_x, leave
    return f'<path class="arrow" marker-end="url(#head)" d="{path}"/>'


def box(room: Room, x: float, y: float) -> str:
    """A room with its name and up to three lines of words."""
    lines = textwrap.wrap(room.words, LETTERS)
    if len(lines) > 3:
        lines = [*lines[:2], textwrap.shorten(" ".join(lines[2:]), LETTERS, placeholder=" …")]
    texts = "".join(
        f'<text class="words" x="{x + 12:g}" y="{y + 37 + LINE * index:g}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    )
    return (
        f'<rect class="room" x="{x:g}" y="{y:g}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}" '
        f'rx="6"/><text class="name" x="{x + 12:g}" y="{y + 20:g}">{escape(room.name)}</text>'
        f"{texts}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.draw_architecture", description="Draw docs/architecture.svg from the imports."
    )
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    check: bool = parser.parse_args(arguments).check
    made = svg(house())
    if not check:
        PICTURE.write_text(made, encoding="utf-8")
        return 0
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/architecture.svg is not what the imports give: run `make architecture`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
