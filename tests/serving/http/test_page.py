"""The page at `/` as a client gets it: files, headers, and nothing from anywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from jaxinfer.sampling_params import FIELDS
from serving.http.page import FOLDER, POLICY, Page
from tests.serving.harness import run
from tests.serving.http.harness import http_serving

FILES = sorted(path.name for path in FOLDER.iterdir())


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_file_is_served_with_a_strict_policy():
    async def test() -> None:
        async with http_serving() as s:
            for name in FILES:
                answer = await s.http.get(f"/page/{name}")
                assert answer.status_code == 200
                assert answer.content == (FOLDER / name).read_bytes()
                assert answer.headers["content-security-policy"] == POLICY
                assert answer.headers["x-content-type-options"] == "nosniff"
                again = await s.http.get(f"/page/{name}", headers={"if-none-match": answer.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
            index = await s.http.get("/")
            assert index.content == (FOLDER / "index.html").read_bytes()
            assert index.headers["content-type"] == "text/html; charset=utf-8"
            script = await s.http.get("/page/main.js")
            assert script.headers["content-type"] == "text/javascript; charset=utf-8"
            assert (await s.http.head("/")).status_code == 200

    run(test())


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/", "/page"])
def test_nothing_else_is_served(path):
    async def test() -> None:
        async with http_serving() as s:
            answer = await s.http.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"
            assert (await s.post("/")).status_code == 405

    run(test())


def test_the_policy_allows_this_server_alone():
    directives = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert directives["default-src"] == "'none'"
    assert {value for name, value in directives.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert "unsafe" not in POLICY


def test_the_page_asks_for_nothing_from_elsewhere():
    """No address with a host, no inline script or style, and every file that is named is there."""
    text = (FOLDER / "index.html").read_text()
    named = set()
    for tag, attributes in Tags(text).tags:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}, tag
        assert tag not in ("style", "iframe", "object", "base", "form action"), tag
        if tag == "script":
            assert attributes["src"]
        named |= {value for name in ("src", "href") if (value := attributes.get(name)) and not value.startswith("#")}
    for name in FILES:
        body = (FOLDER / name).read_text()
        assert not re.findall(r"""(?<!=)["'(](?:https?:)?//""", body.replace("http://www.w3.org/2000/svg", "")), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", body), name
        named |= {f"page/{found}" for found in re.findall(r'from "\./([\w.]+)"', body)}
    assert named == {f"page/{name}" for name in FILES if name != "index.html"}


def test_the_page_keeps_nothing_outside_its_memory():
    for name in FILES:
        body = (FOLDER / name).read_text()
        assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie|caches\b", body), name


def test_a_package_without_its_files_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.html is missing: the package was installed without"):
        Page(tmp_path)


def test_controls_of_sampling_parameters_take_numbers_of_their_kind():
    """Which parameters the page has is its own choice; integers take no fractions."""
    script = (FOLDER / "settings.js").read_text()
    listed = re.search(r"const NUMBERS = \[(.*?)\];", script, re.DOTALL)
    assert listed is not None
    numbers = re.findall(r'"(\w+)"', listed[1])
    inputs = {
        attributes["name"]: attributes
        for tag, attributes in Tags((FOLDER / "index.html").read_text()).tags
        if tag == "input" and attributes.get("name") in FIELDS and attributes.get("type") == "number"
    }
    assert inputs.keys() == set(numbers)
    steps = {"integer": ("1", "numeric"), "number": ("any", "decimal")}
    for name, attributes in inputs.items():
        assert (attributes["step"], attributes["inputmode"]) == steps[FIELDS[name].kind], name
