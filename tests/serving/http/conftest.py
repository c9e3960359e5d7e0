"""What tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.http.browser import chromium, visits


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """See `visits`."""
    with visits(browser) as open_page:
        yield open_page
