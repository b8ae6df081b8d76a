"""Tiles that could not be read, counted over files, thresholds and processes."""

import json

from forestgaps_jax.data import unread
from forestgaps_jax.data.unread import Unread


def noted(*tiles):
    found = Unread()
    for number, path in tiles:
        found.add(number, path, f"{path}: cut off at {number}")
    return found


def test_a_tile_counts_once_however_often_it_was_tried():
    found = noted((3, "a"), (3, "a"), (5, "a"), (3, "b"))
    assert len(found) == 2
    assert found.by_file() == {"a": 2, "b": 1}
    assert len(Unread()) == 0


def test_it_is_the_same_after_a_checkpoint_and_goes_on():
    found = noted((3, "a"), (5, "b"))
    again = Unread(json.loads(json.dumps(found.state())))
    assert again.state() == found.state()
    again.add(9, "a", "another reason")
    assert again.state()["a"] == {"why": "a: cut off at 3", "tiles": [3, 9]}
    assert found.by_file() == {"a": 1, "b": 1}


def test_of_several_processes_it_is_the_union(monkeypatch):
    others = [noted((3, "a"), (4, "a")), noted((4, "a"), (7, "b"))]
    monkeypatch.setattr(unread, "said_by_each", lambda words: [json.dumps(one.state()) for one in others])
    whole = others[0].of_all()
    assert whole.by_file() == {"a": 2, "b": 1}
    assert len(whole) == 3
    # Who asks again, as after a resume of all from one checkpoint, counts nothing twice.
    others[:] = [whole, whole]
    assert whole.of_all().state() == whole.state()


def test_one_line_tells_of_all_files_and_none_where_all_were_read(caplog):
    Unread().warn(9)
    assert not caplog.records
    noted((3, "a"), (4, "a"), (7, "b")).warn(9)
    [record] = caplog.records
    assert record.getMessage() == (
        "3 of 9 tiles were skipped in this epoch, as they could not be read: 2 of a: cut off at 3; "
        "1 of b: cut off at 7"
    )
