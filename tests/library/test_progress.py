"""What is told of long work: enough, and not too much."""

from __future__ import annotations

from hub.library.progress import Meter, Note, Progress


class Heard:
    """A meter at a time that the test sets, and all that it told."""

    def __init__(self, total: int) -> None:
        self.time = 0.0
        self.told: list[Progress] = []
        self.meter = Meter("verify", total, self._hear, now=lambda: self.time)

    def _hear(self, event: Progress | Note) -> None:
        assert isinstance(event, Progress)
        self.told.append(event)


def test_the_end_of_a_file_is_told_once_and_the_rest_now_and_then() -> None:
    heard = Heard(200)
    for _ in range(100):
        heard.meter.add("a", 100, 1)
    assert [each.done for each in heard.told] == [1, 100]
    heard.meter.add("b", 100, 100)
    assert (heard.told[-1].file, heard.told[-1].all_done, len(heard.told)) == ("b", 200, 3)


def test_more_bytes_than_there_are_make_no_flood_and_no_nonsense() -> None:
    heard = Heard(200)
    for _ in range(200):
        heard.meter.add("of two models", 100, 1)
    assert [(each.done, each.total) for each in heard.told] == [(1, 100), (100, 100), (100, 100)]
    assert [each.all_done for each in heard.told] == [1, 100, 200]
    for _ in range(50):
        heard.meter.add("of two models", 100, 1)
        heard.time += 0.1
    assert 20 <= len(heard.told) - 3 <= 26
    assert all(each.done <= each.total and each.all_done <= each.all_total for each in heard.told)


def test_work_that_was_lost_is_told_of_and_its_end_again() -> None:
    heard = Heard(100)
    heard.meter.add("a", 100, 100)
    heard.meter.add("a", 100, -100, moved=False)
    heard.meter.add("a", 100, 100)
    assert [each.done for each in heard.told] == [100, 100]
    assert heard.told[-1].all_done == 100
