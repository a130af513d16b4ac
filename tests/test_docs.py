"""The README says what kvcalc says today."""

from tests.docs import PAGES, generated


def test_generated_blocks_are_current():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert generated(text) == text, f"{page.name} is out of date; run: python tests/docs.py"
