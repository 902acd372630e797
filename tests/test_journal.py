"""The journal of long work: what is done, and what a changed or a foreign file makes of it."""

from __future__ import annotations

import pytest

from util.journal import Journal
from utils import InputError


def test_what_is_done_is_known_again_unless_the_file_has_changed(tmp_path) -> None:
    files = [tmp_path / name for name in ("a.png", "é.png")]
    for file in files:
        file.write_text("1")
    first = Journal(tmp_path / "new/journal", {"threshold": 0.5})
    assert not (tmp_path / "new").exists()  # begun with the first result
    first.add((file.stem, file, [1.5]) for file in files)
    again = Journal(tmp_path / "new/journal", {"threshold": 0.5})
    assert again.results == {"a": [1.5], "é": [1.5]} and all(again.has(file.stem, file) for file in files)
    files[0].write_text("2")  # as long as it was
    assert not again.has("a", files[0]) and not again.has("b", files[0])
    with pytest.raises(InputError, match="other weights or options"):
        Journal(tmp_path / "new/journal", {"threshold": 0.6})


@pytest.mark.parametrize("line", ["{", "5", "[]", '["a"]', '["a", "f", 3, []]', "null"])
def test_a_damaged_journal_is_a_clear_error(line, tmp_path) -> None:
    (tmp_path / "journal").write_text(f"{{}}\n{line}\n")
    with pytest.raises(InputError, match="damaged; delete it"):
        Journal(tmp_path / "journal", {})
