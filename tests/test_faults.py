"""Each group of faults of the original has tests that carry its number."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMES = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
PAGE = (TESTS.parent / "docs" / "from-forestgaps.md").read_text()


@pytest.mark.parametrize("number", range(1, 18))
def test_each_fault_is_guarded_and_told(number):
    assert re.search(rf"def test_\w*fault_{number:02}[_(]", NAMES)
    assert re.search(rf"^\| {number:02} \| .+ \| .+ \|$", PAGE, re.MULTILINE)
