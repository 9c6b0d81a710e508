"""What commands and jobs have in common: the user's mistakes, exit codes, and who owns stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from compass_ray import cli, plan
from compass_ray.config import Config
from compass_ray.errors import UserError


class TaskError(UserError):
    """As Ray raises it: the message is a traceback, and the error itself its cause."""

    cause = UserError("languages: qqq is not known")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli, "configure_logging", lambda verbose: None)
    file = tmp_path / "run.yaml"
    file.write_text("languages: [de]\n")
    return file


@pytest.mark.parametrize("error", [TaskError("ray::_fit()\nTraceback"), TaskError.cause])
def test_a_mistake_of_the_user_is_one_line_wherever_it_was_raised(
    error: UserError, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.main(work)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "compass-ray: languages: qqq is not known\n"


def test_a_job_tells_mistakes_as_its_command_does(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["jobs/adapt.py", "--config", str(file), "--set", "samplng.budget=1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.run_job("run", "A job.")
    assert ended.value.code == 2
    assert "did you mean sampling?" in capsys.readouterr().err
    assert sys.argv == words


def test_a_job_hands_its_overrides_on_and_ends_as_its_command_does(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Config] = []

    def run(path: Path, overrides: list[str], *_: object) -> None:
        ran.append(cli.load_config(path, overrides))
        sys.exit(1)

    words = ["--config", str(file), "--set", "run.seed=1", "--set", "sampling.budget=7"]
    monkeypatch.setattr(sys, "argv", ["jobs/adapt.py", *words])
    monkeypatch.setattr(cli, "_run", run)
    with pytest.raises(SystemExit) as ended:
        cli.run_job("run", "A job.")
    assert ended.value.code == 1
    assert [(config.run.seed, config.sampling.budget) for config in ran] == [(1, 7)]


@dataclass
class Made:
    rows: int


def test_stdout_is_for_the_result_whatever_libraries_print(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_plan(config: Config) -> Made:
        print("a library speaks")
        return Made(3)

    monkeypatch.setattr(plan, "make_plan", make_plan)
    cli.app(["plan", str(file), "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"rows": 3}
    assert said.err == "a library speaks\n"
