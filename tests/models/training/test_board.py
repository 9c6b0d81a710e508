from __future__ import annotations

from typing import Any

from compass_ray.training.board import Board
from compass_ray.training.launch import back_off


def step(number: int) -> dict[str, Any]:
    return {"step": number, "loss": 1.0 / number}


def test_a_reader_is_told_what_is_new_and_no_more() -> None:
    board = Board()
    for number in (1, 2, 3):
        board.on_step("sw", step(number), 9)
    board.on_restart("sw", "a worker died")
    seen = board.since({})["sw"]
    assert [told["step"] for told in seen.steps] == [1, 2, 3]
    assert (seen.total, seen.restarts, seen.failure) == (9, ["a worker died"], None)
    board.on_step("sw", step(2), 9)
    board.on_failure("sw", "loss is nan at step 3")
    news = board.since({"sw": (3, 1)})["sw"]
    assert ([told["step"] for told in news.steps], news.restarts) == ([2], [])
    assert news.failure == "loss is nan at step 3"


def test_losses_are_of_languages_that_took_a_step() -> None:
    board = Board()
    board.on_restart("zu", "no node had room")
    board.on_step("sw", step(4), 9)
    assert board.losses() == {"sw": {4: 0.25}}


def test_waits_grow_up_to_a_minute() -> None:
    assert [back_off(failures) for failures in (1, 2, 3, 6, 50)] == [2, 4, 8, 60, 60]
