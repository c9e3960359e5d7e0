"""Draws docs/house.svg, the rooms of this repository as their imports order them.

    python scripts/draw_house.py [--check]

The four packages stand on each other. In a package a row imports only what stands below it: folders have a box each,
and files that lie in the package itself share one. Folders whose files import each other's, without a circle of files,
stand in one frame. --check writes nothing and exits with 1 if the picture is not the one of the imports.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "house.svg"
PACKAGES = ("serving", "checkpoints", "jaxinfer", "pallas_kernels")  # from above
# They put the others together, and import upwards inside functions: they stand above their whole package.
COMPOSITION_ROOTS = ("jaxinfer/llm.py", "jaxinfer/cli.py")

WIDTH, MARGIN, GAP = 960, 16, 10
LABEL = 120  # width of a package's name
CHARACTER, LINE, PAD = 6.7, 16, 9  # of the text, 11 pixels high, and round it
FILL = {"serving": "#e8eef7", "checkpoints": "#edf5ea", "jaxinfer": "#fbf3e4", "pallas_kernels": "#f6eaee"}


@dataclass(frozen=True)
class Box:
    """text: its lines. folder: whether it is a folder, which has a heavier frame."""

    text: tuple[str, ...]
    folder: bool

    @property
    def width(self) -> float:
        return max(len(line) for line in self.text) * CHARACTER + 2 * PAD

    @property
    def height(self) -> float:
        return len(self.text) * LINE + PAD


def room_of(path: Path) -> str:
    """A file's room: the folder below the package, or the file itself where it lies in the package."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2])


def files() -> list[Path]:
    """All that are drawn: data with Python in it, and the packages' own __init__, are not."""
    found = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [path for path in found if not (path.name == "__init__.py" and path.parent.parent == ROOT)]


def imports() -> dict[str, set[str]]:
    """{room: rooms of its package that it imports}."""
    rooms = {room_of(path) for path in files()}
    graph: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for path in files():
        room = room_of(path)
        for name in _imported(path):
            target = "/".join(name.split(".")[:2])
            for other in (target, f"{target}.py"):
                if other in rooms and other != room and other.split("/")[0] == room.split("/")[0]:
                    graph[room].add(other)
    return graph


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def groups(graph: dict[str, set[str]]) -> list[frozenset[str]]:
    """Rooms that reach each other, together; the others alone."""
    reached = {room: _reached(graph, room) for room in graph}
    return sorted(
        {frozenset({a, *(b for b in reached[a] if a in reached[b])}) for a in graph},
        key=sorted,
    )


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for other in graph[ahead.pop()] - seen:
            seen.add(other)
            ahead.append(other)
    return seen


def rows(graph: dict[str, set[str]], package: str) -> list[list[frozenset[str]]]:
    """A package's groups from above: each as low as what it imports allows."""
    own = {room: others for room, others in graph.items() if room.split("/")[0] == package}
    member = {room: group for group in groups(own) for room in group}
    heights: dict[frozenset[str], int] = {}

    def height(group: frozenset[str]) -> int:
        if group not in heights:
            below = {member[other] for room in group for other in own[room]} - {group}
            heights[group] = 1 + max((height(one) for one in below), default=-1)
        return heights[group]

    most = max(height(group) for group in member.values())
    return [[group for group in groups(own) if heights[group] == level] for level in range(most, -1, -1)]


def boxes(rooms: frozenset[str]) -> list[Box]:
    """The folders among some rooms, then one box for the files."""
    found = [Box((room.split("/")[1] + "/",), folder=True) for room in sorted(rooms) if not room.endswith(".py")]
    loose = [room.split("/")[1].removesuffix(".py") for room in sorted(rooms) if room.endswith(".py")]
    if loose:
        found.append(Box(tuple(textwrap.wrap(" · ".join(loose), 96 if len(found) < 3 else 60)), folder=False))
    return found


class Drawing:
    """Lines of SVG, from above; `y` is where the next row begins."""

    def __init__(self) -> None:
        self.y: float = MARGIN
        self._lines: list[str] = []

    def package(self, name: str, levels: list[list[frozenset[str]]]) -> None:
        begin, at = self.y, len(self._lines)
        self.y += PAD
        for level in levels:
            alone = frozenset(room for group in level if len(group) == 1 for room in group)
            for group in (group for group in level if len(group) > 1):
                self._row(boxes(group), framed=True)
            if alone:
                self._row(boxes(alone), framed=False)
        self.y += PAD - GAP
        frame = self._rectangle(MARGIN, begin, WIDTH - 2 * MARGIN, self.y - begin, FILL[name], "#9aa3ad", 1)
        label = f'<text x="{MARGIN + 10}" y="{begin + 24:g}" font-weight="bold">{name}/</text>'
        self._lines[at:at] = [frame, label]
        self.y += GAP

    def _row(self, row: list[Box], *, framed: bool) -> None:
        """Boxes beside each other, in several lines where they do not fit."""
        begin, at = self.y, len(self._lines)
        inset = PAD if framed else 0
        left = MARGIN + LABEL + inset
        right = WIDTH - MARGIN - PAD - inset
        self.y += inset
        x: float = left
        tallest = 0.0
        for box in row:
            if x > left and x + box.width > right:
                x, self.y, tallest = left, self.y + tallest + GAP, 0.0
            self._box(box, x)
            x += box.width + GAP
            tallest = max(tallest, box.height)
        self.y += tallest + inset
        if framed:
            size = (right - left + 2 * PAD, self.y - begin)
            dashes = 'stroke-dasharray="4 3"'
            self._lines.insert(at, self._rectangle(left - PAD, begin, *size, "none", "#6b7683", 1, dashes))
        self.y += GAP

    def _box(self, box: Box, x: float) -> None:
        self._lines.append(
            self._rectangle(x, self.y, box.width, box.height, "#ffffff", "#3c4650", 1.6 if box.folder else 0.7)
        )
        for number, line in enumerate(box.text):
            y = self.y + PAD / 2 + number * LINE + 12
            weight = ' font-weight="bold"' if box.folder else ""
            self._lines.append(f'<text x="{x + PAD:g}" y="{y:g}"{weight}>{escape(line)}</text>')

    @staticmethod
    def _rectangle(
        x: float, y: float, width: float, height: float, fill: str, stroke: str, thick: float, more: str = ""
    ) -> str:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"'
        return f'<rect {place} fill="{fill}" stroke="{stroke}" stroke-width="{thick:g}" {more}/>'.replace(" />", "/>")

    def svg(self) -> str:
        height = self.y - GAP + MARGIN
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" font-family="monospace" font-size="11" fill="#1b2127" xml:space="preserve">'
        )
        about = "<!-- Made by scripts/draw_house.py from the imports: a row imports only what stands below it. -->"
        return "\n".join([head, about, *self._lines, "</svg>"]) + "\n"


def picture() -> str:
    graph = imports()
    for root in COMPOSITION_ROOTS:
        below = {room for room in graph if room.startswith("jaxinfer/") and root not in _reached(graph, room) | {room}}
        graph[root] |= below.difference(COMPOSITION_ROOTS)
    drawing = Drawing()
    for package in PACKAGES:
        drawing.package(package, rows(graph, package))
    return drawing.svg()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the picture is out of date")
    arguments = parser.parse_args()
    drawn = picture()
    if not arguments.check:
        PICTURE.write_text(drawn, encoding="utf-8")
        return 0
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == drawn:
        return 0
    print(f"draw_house: error: {PICTURE.relative_to(ROOT)} is out of date; run scripts/draw_house.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
