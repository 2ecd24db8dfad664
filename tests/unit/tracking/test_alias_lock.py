import logging
from pathlib import Path

import pytest

from forecast.errors import RegistryError
from forecast.tracking import alias_lock as module
from forecast.tracking.alias_lock import alias_lock


@pytest.mark.parametrize("place", ["store", "ledger"])
def test_one_at_a_time_moves_aliases_and_the_other_is_told_who(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    place_of = (uri, None) if place == "store" else ("http://me:secret@tracking.example", uri)
    with alias_lock(*place_of, "loads"):
        with (
            pytest.raises(
                RegistryError, match=r"aliases of loads in .* locked for 0 s by process \d+ on .*, since 20"
            ) as e,
            alias_lock(*place_of, "loads"),
        ):
            raise AssertionError
        assert "secret" not in str(e.value)
    # Another name of the same file.
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    linked = alias_lock(f"sqlite:///{tmp_path / 'b.db'}", None, "loads")
    with alias_lock(*place_of, "loads"), pytest.raises(RegistryError), linked:
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir() if path.name != "b.db"] == [".a.db.aliases.lock"]


def test_an_error_under_the_lock_is_that_error_and_ends_the_lock(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    with pytest.raises(OSError, match="mine"), alias_lock(uri, None, "loads"):
        raise OSError("mine")
    with alias_lock(uri, None, "loads"):
        assert "process" in (tmp_path / ".a.db.aliases.lock").read_text()


def test_where_the_ledger_can_not_lock_that_is_logged_and_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.db.aliases.lock").symlink_to(tmp_path / "mine")
    done = []
    with caplog.at_level(logging.WARNING):
        for uri in (f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'nowhere' / 'a.db'}", "mysql://db/x"):
            with alias_lock("http://tracking.example", uri, "loads"):
                done.append(uri)
    assert len(done) == 3
    assert sum("move without a lock" in record.message for record in caplog.records) == 3
    assert (tmp_path / "mine").read_text() == "mine"
    caplog.clear()
    with alias_lock("mlruns", None, "loads"), alias_lock("sqlite://", None, "loads"):
        assert not caplog.records
