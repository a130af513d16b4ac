"""The README, the schemas and the checksums of the specs are those of today."""

from tests.docs import stale


def test_what_is_made_from_the_code_is_current():
    assert [path.name for path in stale()] == [], "out of date; run: python tests/docs.py"
