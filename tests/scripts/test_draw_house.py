"""docs/house.svg is the picture of today's imports."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/draw_house.py` has it

import draw_house  # noqa: E402


def test_the_picture_is_current() -> None:
    drawn = draw_house.picture()
    assert draw_house.PICTURE.read_text(encoding="utf-8") == drawn, "run scripts/draw_house.py"
    ElementTree.fromstring(drawn)


def test_a_row_imports_only_what_stands_below_it() -> None:
    graph = draw_house.imports()
    for package in draw_house.PACKAGES:
        seen: set[str] = set()
        for row in draw_house.rows(graph, package):
            for group in row:
                seen |= group
                others = {other for room in group for other in graph[room]} - group
                assert not others & seen, f"{sorted(group)} imports {others & seen}, which do not stand below"
        assert seen == {room for room in graph if room.split("/")[0] == package}


def test_rooms_that_import_each_other_share_a_frame() -> None:
    graph = {"p/a": {"p/b"}, "p/b": {"p/a", "p/c.py"}, "p/c.py": set(), "p/d.py": {"p/a"}, "q/e": set()}
    frame = frozenset({"p/a", "p/b"})
    assert draw_house.rows(graph, "p") == [[frozenset({"p/d.py"})], [frame], [frozenset({"p/c.py"})]]
    assert [box.text for box in draw_house.boxes(frame | {"p/c.py", "p/d.py"})] == [("a/",), ("b/",), ("c · d",)]
