from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compass_ray import cli
from compass_ray.artifacts import Storage
from compass_ray.continual.monitor import DriftMonitor
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.watch import Watch
from compass_ray.errors import UserError

from .conftest import prompts, write_log

MakeRun = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]


def stable(count: int, seed: int) -> list[str]:
    texts = prompts("sum", count // 2, seed) + prompts("capital", count - count // 2, seed)
    random.Random(seed).shuffle(texts)
    return texts


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compass-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(stop.value.code or 0), out, err

    yield run
    logging.getLogger("compass_ray").handlers.clear()


def test_stable_usage_exits_0_and_drift_3_and_the_same_window_counts_once(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    run = make_run()
    log = write_log(tmp_path / "monday.jsonl", stable(20, 2))
    code, out, _ = command("monitor", run, "--usage", log)
    assert code == 0 and "stable" in out
    moved = write_log(tmp_path / "tuesday.jsonl", prompts("weather", 20, 2))
    code, out, _ = command("monitor", run, "--usage", moved, "--json")
    told = json.loads(out)
    assert code == 3 and told["drifted"] and told["windows"][0]["window"] == 2
    assert "regnen" in told["windows"][0]["moves"][0]["examples"][0]
    code, out, err = command("monitor", run, "--usage", moved, "--json")
    assert code == 3 and json.loads(out)["windows"] == []
    assert "nothing new; the 40 prompts counted before stay counted once" in err


def test_a_few_prompts_left_over_raise_an_alarm_but_do_not_end_one(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    run, log = make_run(), tmp_path / "usage.jsonl"
    asked: list[str] = []

    def look(*more: str) -> tuple[int, list[tuple[int, int, bool, bool]]]:
        asked.extend(more)
        write_log(log, asked)
        code, out, _ = command("monitor", run, "--usage", log, "--json")
        columns = ("window", "rows", "partial", "drifted")
        return code, [tuple(told[c] for c in columns) for told in json.loads(out)["windows"]]

    code, judged = look(*stable(20, 2), *prompts("weather", 20, 2), *stable(1, 3))
    assert judged == [(1, 20, False, False), (2, 20, False, True), (3, 1, True, False)]
    assert code == 3
    assert look() == (3, []), "nothing is judged twice"
    assert look(*stable(19, 4)) == (0, [(3, 20, False, False)]), "the window is full by now"
    assert look(*prompts("weather", 15, 5)) == (3, [(4, 15, True, True)])


def test_a_window_that_fills_is_judged_when_it_has_doubled_and_its_looks_share_alpha(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, asked = RunFolder.open(str(make_run(alpha=0.2))), stable(20, 2)
    log, whole = tmp_path / "usage.jsonl", write_log(tmp_path / "whole.jsonl", asked)
    (unseen,) = Watch(run).look(str(whole), close=True).windows
    run.storage.filesystem.delete_dir(run.storage.path(run.path("monitor")))
    judged = []
    for rows in (4, 7, 8, 15, 16, 20):
        write_log(log, asked[:rows])
        judged += Watch(run).look(str(log), close=True).windows
    assert [(told["rows"], told["looks"]) for told in judged] == [(4, 1), (8, 2), (16, 3), (20, 3)]
    assert judged[-1]["divergence"] == unseen["divergence"]
    assert judged[-1]["threshold"] > unseen["threshold"]


def test_stray_records_in_a_log_that_was_read_before_are_set_aside(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    run, logs = make_run(), tmp_path / "logs"
    logs.mkdir()
    log = write_log(logs / "1.jsonl", stable(12, 2))
    assert command("monitor", run, "--usage", logs)[0] == 0
    with log.open("a") as file:
        file.write('{"event": "heartbeat"}\n')
    code, _, err = command("monitor", run, "--usage", logs)
    assert code == 0 and f"{log}:13: columns event fit no known format" in err
    with log.open("a") as file:
        file.write('{"text": "half a li\n')
    code, _, err = command("monitor", run, "--usage", logs)
    assert code == 0 and f"{log}:14: not valid JSON" in err
    (logs / "2.jsonl").write_text('{"event": "rotated"}\n')
    with log.open("a") as file:
        file.write(json.dumps({"text": "Was ist 1 plus 2?", "language": "de"}) + "\n")
    code, out, err = command("monitor", run, "--usage", logs, "--json")
    assert code == 0 and json.loads(out)["prompts"] == {"de": 1}
    (logs / "3.jsonl").write_text('{"event": "heartbeat"}\n' * 30)
    code, _, err = command("monitor", run, "--usage", logs)
    assert code == 2 and "3.jsonl: columns event fit no known format" in err


def test_a_log_is_read_as_the_run_read_its_own_usage(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    usage = {"path": "q.jsonl", "columns": {"query": "text"}}
    run, log = make_run(usage=usage, languages=("de",)), tmp_path / "q.jsonl"
    log.write_text("".join(json.dumps({"query": text}) + "\n" for text in stable(20, 2)))
    code, out, _ = command("monitor", run, "--usage", log, "--json")
    assert code == 0 and json.loads(out)["prompts"] == {"de": 20}
    for nowhere in ("atlas", "hf:owner/name"):
        code, _, err = command("monitor", run, "--usage", nowhere)
        assert code == 2 and f"{nowhere}: no log; expected a file" in err


def test_prompts_counted_without_examples_are_judged_with_those_that_have_them(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = RunFolder.open(str(make_run()))
    asked = prompts("weather", 20, 7)
    log = write_log(tmp_path / "usage.jsonl", asked[:12])
    Watch(run, examples=False).look(str(log), close=False)
    write_log(log, asked)
    (window,) = Watch(run, keep_drifted=True).look(str(log), close=False).windows
    assert window["rows"] == 20 and "regnen" in window["moves"][0]["examples"][0]
    assert run.storage.read_table(run.path(window["kept"])).num_rows == 8


def test_following_tells_of_each_window_as_the_folder_grows(
    make_run: MakeRun, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    write_log(logs / "1.jsonl", stable(20, 2))
    words = [sys.executable, "-c", "from compass_ray.cli import main; main()", "monitor"]
    words += [str(make_run()), "--usage", str(logs), "--follow", "--every", "0.1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as following:
        assert following.stdout
        first = json.loads(following.stdout.readline())
        write_log(logs / "2.jsonl", prompts("weather", 20, 2))
        second = json.loads(following.stdout.readline())
        following.terminate()
        rest, err = following.communicate()
    assert [told["window"] for told in (*first["windows"], *second["windows"])] == [1, 2]
    assert [first["drifted"], second["drifted"]] == [False, True]
    assert rest == "" and "Traceback" not in err


def test_prompts_of_a_new_kind_are_novel(make_run: MakeRun) -> None:
    report = DriftMonitor(str(make_run()), "de").check(stable(12, 3) + prompts("novel", 12, 3))
    assert report.novel and report.drifted
    assert report.novel_share > 0.4 > report.novel_threshold


def test_windows_fill_over_looks_and_a_kill_between_them_changes_nothing(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = RunFolder.open(str(make_run()))
    texts = stable(48, 4)
    log = write_log(tmp_path / "usage.jsonl", texts[:12])
    windows = []
    for end in (12, 28, 48):
        write_log(log, texts[:end])
        # A new Watch knows only what the last one wrote down, as after a kill.
        windows += Watch(run).look(str(log), close=False).windows
    assert [told["rows"] for told in windows] == [20, 20]
    rest = Watch(run).look(str(log), close=True)
    assert [told["rows"] for told in rest.windows] == [8]
    state = run.storage.read_json(run.path("monitor/state.json"))
    assert state["counted"] == {"de": 48}


def test_a_kill_before_the_state_is_written_leaves_the_chunk_to_be_counted_again(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.open(str(make_run()))
    log = write_log(tmp_path / "usage.jsonl", stable(24, 5))

    def killed(self: Storage, path: str, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            Watch(run).look(str(log), close=False)
    look = Watch(run).look(str(log), close=True)
    assert [told["rows"] for told in look.windows] == [20, 4]


def test_broken_lines_strange_languages_and_huge_prompts_are_told_and_lose_nothing(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    run = make_run()
    log = write_log(tmp_path / "usage.jsonl", [*stable(18, 6), "lang" * 25_000])
    with log.open("a") as file:
        file.write('{"text": "half a li\n{"text": "Habari?", "language": "sw"}\n{"text": 3}\n')
        file.write('{"text": "¿Y esto?", "language": "es"}\n')
    code, out, err = command("monitor", run, "--usage", log, "--json")
    assert code == 0
    assert f"{log}:20: not valid JSON" in err and f"{log}:22: text is not text: 3" in err
    assert "sw: 1 prompts, but run made has no adapter" in err
    assert "es: 1 prompts, but run made has no adapter" in err
    assert json.loads(out)["prompts"] == {"de": 19, "sw": 1, "es": 1}
    code, _, err = command("monitor", run, "--usage", log)
    assert code == 0 and "nothing new; the 21 prompts" in err


def test_an_empty_log_a_wrong_file_and_a_wrong_run_are_each_one_line(
    make_run: MakeRun, command: Command, tmp_path: Path
) -> None:
    run = make_run()
    empty = write_log(tmp_path / "empty.jsonl", [])
    code, out, err = command("monitor", run, "--usage", empty)
    assert (code, out.strip()) == (0, "") and "an empty window says nothing" in err
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("nothing\nof\nthis is JSON\n")
    code, _, err = command("monitor", run, "--usage", wrong)
    assert code == 2 and "wrong.jsonl:1: not valid JSON" in err
    code, _, err = command("monitor", tmp_path, "--usage", empty)
    assert code == 2 and "no run; expected the folder of one" in err


def test_no_examples_means_no_text_on_disk(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    log = write_log(tmp_path / "usage.jsonl", prompts("weather", 24, 7))
    Watch(RunFolder.open(str(folder)), examples=False).look(str(log), close=False)
    for file in (folder / "monitor").iterdir():
        assert b"regnen" not in file.read_bytes()


def write_stamped(path: Path, stamps: list[str]) -> None:
    rows = [
        {"text": text, "language": "de", "timestamp": stamp}
        for text, stamp in zip(stable(len(stamps), 8), stamps, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_windows_of_a_day_are_cut_by_timestamp(make_run: MakeRun, tmp_path: Path) -> None:
    run = RunFolder.open(str(make_run(window="1d")))
    log = tmp_path / "usage.jsonl"
    write_stamped(log, ["2026-05-01T10:00:00Z"] * 3 + ["2026-05-02T00:00:00Z"] * 2)
    assert [told["rows"] for told in Watch(run).look(str(log), close=False).windows] == [3]
    write_log(tmp_path / "more.jsonl", ["Was ist 1 plus 1?"])
    with pytest.raises(UserError, match="needs a timestamp in every record"):
        Watch(run).look(str(tmp_path / "more.jsonl"), close=False)
    assert [told["rows"] for told in Watch(run).look(str(log), close=True).windows] == [2]


def test_a_day_is_judged_once_with_the_files_of_all_servers_and_late_prompts_count_in_a_later(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, logs = RunFolder.open(str(make_run(window="1d"))), tmp_path / "logs"
    logs.mkdir()

    def look(close: bool) -> list[tuple[str, int, bool]]:
        windows = Watch(run).look(str(logs), close).windows
        return [(told["until"], told["rows"], told["partial"]) for told in windows]

    for name, hour in (("a.jsonl", 10), ("b.jsonl", 11)):
        write_stamped(logs / name, [f"2025-03-0{day}T{hour}:00" for day in (1, 1, 2, 3)])
    ends = [f"2025-03-0{day}T00:00:00+00:00" for day in range(7)]
    assert look(close=False) == [(ends[2], 4, False), (ends[3], 2, False)]
    assert look(close=True) == [(ends[4], 2, False)], "a day that is over by the clock"
    write_stamped(logs / "c.jsonl", ["2025-03-02T09:00"])
    assert look(close=True) == [(None, 1, True)], "no window by itself"
    assert look(close=True) == []
    write_stamped(logs / "d.jsonl", [f"2025-03-0{day}T09:00" for day in (4, 4, 5)])
    assert look(close=False) == [(ends[5], 3, False)]
