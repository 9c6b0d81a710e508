"""Commands: parse, call, print. Results go to stdout, logs and errors to stderr.

Exit codes: 0 done, 1 something failed, 2 the user's input is wrong, 3 drift found.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from compass_ray.config import Config
from compass_ray.errors import UserError
from compass_ray.loading import load_config
from compass_ray.strict_json import to_json

if TYPE_CHECKING:
    from compass_ray.pipeline import RunResult, Stage

app = typer.Typer(
    name="compass-ray",
    help="Find where a language's training data falls short, fill the gaps, train adapters on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, such as sampling.budget=500"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show what Ray's workers print")]


def main(work: Callable[[], object] = app) -> None:
    """Entry point: do ``work``, and turn the user's mistakes into one line and exit code 2."""
    try:
        work()
    except UserError as error:
        # Raised in a Ray task, it prints as that task's traceback; its cause is the line itself.
        print(f"compass-ray: {getattr(error, 'cause', error)}", file=sys.stderr)
        sys.exit(2)


def run_job(command: str, description: str | None) -> None:
    """What a file in jobs/ does: ``command`` on ``--config``, with ``--set`` as often as wanted."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="The YAML file of the run")
    parser.add_argument("--set", action="append", default=[], help="Override, section.key=value")
    arguments = parser.parse_args()
    overrides = [word for override in arguments.set for word in ("--set", override)]
    main(lambda: app([command, arguments.config, *overrides], prog_name="compass-ray"))


@contextmanager
def _results() -> Iterator[TextIO]:
    """Stdout, for results alone: libraries print where they like, and here that is stderr."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield stdout


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Carry out every stage; what an earlier run has done is not done again."""
    _run(config, overrides, "report", as_json, verbose)


@app.command()
def embed(config: ConfigPath, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Read and embed the corpora."""
    _run(config, overrides, "embed", False, verbose)


@app.command()
def cluster(config: ConfigPath, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """The stages up to the clusters."""
    _run(config, overrides, "cluster", False, verbose)


@app.command()
def sample(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The stages up to one subset per language."""
    _run(config, overrides, "sample", as_json, verbose)


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The stages up to one adapter per language."""
    _run(config, overrides, "train", as_json, verbose)


@app.command()
def evaluate(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """The stages up to the scores of base and adapters."""
    _run(config, overrides, "evaluate", as_json, verbose)


@app.command()
def report(config: ConfigPath, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Write the report of a run that is there already."""
    settings = _load(config, overrides, verbose)
    with _results() as results:
        from compass_ray.pipeline import write_only_report

        print(write_only_report(settings), file=results)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """What a run would do: rows, tokens, memory, hours, and whether it fits. Runs nothing."""
    settings = _load(config, overrides, verbose)
    with _results() as results:
        from compass_ray.plan import format_plan, make_plan

        made = make_plan(settings)
        if as_json:
            print(to_json(asdict(made)), file=results)
        else:
            print(format_plan(made), file=results)


@app.command()
def compare(
    config: ConfigPath,
    strategies: Annotated[
        str, typer.Option(help="Names, comma between; compass is always among them")
    ] = "random,all,target_only",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, from run.seed on")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Strategies at the same budget, steps and items, with compass tested against each."""
    settings = _load(config, overrides, verbose)
    with _results() as results:
        from compass_ray import compare as comparison
        from compass_ray.evaluation import standings

        rows = comparison.compare(settings, [n.strip() for n in strategies.split(",")], seeds)
        if as_json:
            print(to_json(standings.as_json(rows)), file=results)
        else:
            print(standings.markdown(rows, settings.evaluation.confidence), file=results)


RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder: outputs/runs/demo")]
Usage = Annotated[str, typer.Option(help="Usage log: jsonl or parquet; file, folder or glob")]


@app.command()
def monitor(
    run: RunPath,
    usage: Usage,
    follow: Annotated[bool, typer.Option(help="Go on looking; judge full windows only")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks")] = 60.0,
    losses: Annotated[
        bool, typer.Option("--losses", help="Also the adapter's loss on answers in the log")
    ] = False,
    examples: Annotated[bool, typer.Option(help="Keep prompts as examples of what moved")] = True,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Has usage drifted from what the adapters were built for? Exit code 0 stable, 3 drift."""
    configure_logging(verbose)
    drifted = False
    with _results() as results:
        from compass_ray.continual.runfolder import RunFolder
        from compass_ray.continual.text import shown
        from compass_ray.continual.watch import Watch, looks
        from compass_ray.report.page import write_report

        folder = RunFolder.open(run)
        watch = Watch(folder, examples=examples, losses=losses)
        for look in looks(watch, usage, every if follow else None):
            for message in look.messages:
                print(f"compass-ray: {message}", file=sys.stderr)
            if look.windows:
                write_report(folder.storage, folder.name)
            print(shown(look, as_json), file=results, flush=True)
            drifted = look.drifted
    if drifted:
        sys.exit(3)


@app.command()
def update(
    run: RunPath,
    usage: Usage,
    languages: Annotated[str, typer.Option(help="Codes, comma between; default: all there")] = "",
    evaluation: Annotated[
        str | None, typer.Option(help="Items of the new usage; default: the run's, weighted by it")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train adapters on from where they are, for new usage; promote what proves better."""
    configure_logging(verbose)
    wanted = [code.strip() for code in languages.split(",") if code.strip()]
    with _results() as results:
        from compass_ray.continual.runfolder import RunFolder
        from compass_ray.continual.update import update as bring_up_to_date
        from compass_ray.report.card import write_cards
        from compass_ray.report.page import write_report

        folder = RunFolder.open(run)
        done = bring_up_to_date(folder, usage, wanted, evaluation, overrides or [])
        write_cards(folder.storage, folder.name)
        write_report(folder.storage, folder.name)
        if as_json:
            print(to_json([asdict(told) for told in done]), file=results)
        else:
            print("\n".join(map(str, done)), file=results)
    if any(told.failed for told in done):
        sys.exit(1)


@app.command()
def rollback(
    run: RunPath,
    language: Annotated[str, typer.Option(help="Whose adapter")],
    to: Annotated[str | None, typer.Option(help="v0001; default: the current one's parent")] = None,
) -> None:
    """Make an earlier version of an adapter current again."""
    with _results() as results:
        from compass_ray.continual.runfolder import RunFolder

        was, current = RunFolder.open(run).registry(language).rollback(to)
        print(f"{language}: {was.name} -> {current.name} is current", file=results)


@app.command()
def merge(
    run: RunPath,
    language: Annotated[str, typer.Option(help="Whose adapter")],
    to: Annotated[Path, typer.Option(help="Folder of the merged model; not there yet")],
    version: Annotated[str | None, typer.Option(help="v0001; default: the current one")] = None,
) -> None:
    """Merge an adapter into its base model, for servers that load no adapters."""
    configure_logging(verbose=False)
    with _results() as results:
        from compass_ray.continual.runfolder import RunFolder
        from compass_ray.training.merging import merge as merge_into_base

        folder = RunFolder.open(run)
        chosen = folder.registry(language).named(version) if version else folder.current(language)
        with folder.storage.as_local_dir(chosen.folder) as adapter:
            merge_into_base(folder.config.training.model, Path(adapter), to)
        print(to, file=results)


@app.command()
def search(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Trials over search.space; the best one's configuration is written out, ready for run."""
    settings = _load(config, overrides, verbose)
    with _results() as results:
        from compass_ray.search import driver

        result = driver.search(settings)
        written = driver.as_json if as_json else driver.format_result
        print(written(result, settings), file=results)
    if any(trial.status == "failed" for trial in result.trials):
        sys.exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine or cluster can do, and what is missing."""
    with _results() as results:
        from compass_ray.doctor import examine, format_checks

        checks = examine()
        if as_json:
            print(to_json([asdict(check) for check in checks]), file=results)
        else:
            print(format_checks(checks), file=results)


@app.command("config-schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    print(to_json(Config.model_json_schema()))


def _run(
    path: Path, overrides: list[str] | None, until: Stage, as_json: bool, verbose: bool
) -> None:
    config = _load(path, overrides, verbose)
    with _results() as results:
        from compass_ray import pipeline

        result = pipeline.run(config, until)
        if as_json:
            print(to_json(asdict(result)), file=results)
        else:
            print(_table(result, config.evaluation.confidence), file=results)
    for language, cause in result.failures.items():
        print(f"compass-ray: {language} failed: {cause}", file=sys.stderr)
    if result.failures:
        sys.exit(1)


def _load(path: Path, overrides: list[str] | None, verbose: bool) -> Config:
    configure_logging(verbose)
    return load_config(path, overrides or [])


def configure_logging(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("compass_ray")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def _table(result: RunResult, confidence: float) -> str:
    """What a run came to, a line a language, or a line a language and task."""
    gain = f"gain [{100 * confidence:g} %]"
    header = ["language", "base", "adapter", gain, "divergence", "own", "picked"]
    rows = [header]
    for language, told in result.languages.items():
        scores: dict[str, dict[str, Any]] = told.get("scores") or {"": {}}
        for task, score in scores.items():
            rows.append(
                [
                    language if len(scores) == 1 else f"{language} {task}",
                    _number(score.get("base")),
                    _number(score.get("adapter")),
                    shorten(score.get("note") or _gain(score), 60, placeholder=" …"),
                    f"{told['js_before']:.3f} -> {told['js_after']:.3f}"
                    if "js_before" in told
                    else "-",
                    f"{told['own']:,}" if "own" in told else "-",
                    f"{told['picked']:,}" if "picked" in told else "-",
                ]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*(line.rstrip() for line in lines), "", f"run: {result.folder}"]) + (
        f"\nreport: {result.report}" if result.report else ""
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _gain(score: dict[str, Any]) -> str:
    gain, low, high = (score.get(name) for name in ("gain", "gain_low", "gain_high"))
    if gain is None or low is None or high is None:
        return "-"
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
