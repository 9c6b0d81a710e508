"""What ``ray job submit`` runs to watch production: looks at a usage log until it is stopped.

``ray job submit --working-dir . -- python jobs/monitor.py --run s3://bucket/compass/runs/demo
--usage s3://bucket/logs/``. A run on disk is named by its absolute path: what git ignores, such as
``outputs/``, does not go along with a job. Gauges ``compass_drift_*`` go to Ray's metrics, and the
run's report shows every window. With ``--auto-update`` a window that drifted is what its language's
adapter is updated for; the gate decides as it does in ``compass-ray update``. The job may be killed
and submitted again at any time.
"""

from __future__ import annotations

import argparse
import logging

from compass_ray.cli import configure_logging, main
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.text import shown
from compass_ray.continual.update import update
from compass_ray.continual.watch import Look, Watch, looks
from compass_ray.report.card import write_cards
from compass_ray.report.page import write_report
from compass_ray.resources import connect

log = logging.getLogger("compass_ray.jobs.monitor")


def watch_usage() -> None:
    """Look at the log that the arguments name, once or until the job is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", required=True, help="A run's folder: s3://bucket/compass/runs/demo"
    )
    parser.add_argument("--usage", required=True, help="Usage log: file, folder or glob")
    parser.add_argument("--every", type=float, default=60.0, help="Seconds between looks")
    parser.add_argument("--auto-update", action="store_true", help="Update what drifted")
    parser.add_argument("--set", action="append", default=[], help="Override of the update")
    parser.add_argument("--once", action="store_true", help="Look once and end")
    arguments = parser.parse_args()
    configure_logging(verbose=False)
    connect()
    run = RunFolder.open(arguments.run)
    tried: set[tuple[str, int]] = set()
    watch = Watch(run, keep_drifted=arguments.auto_update)
    for look in looks(watch, arguments.usage, None if arguments.once else arguments.every):
        for message in look.messages:
            log.warning(message)
        print(shown(look, as_json=False), flush=True)
        if arguments.auto_update:
            bring_up_to_date(run, look, arguments.set, tried)
        write_report(run.storage, run.name)


def bring_up_to_date(
    run: RunFolder, look: Look, overrides: list[str], tried: set[tuple[str, int]]
) -> None:
    """Update each language whose newest window drifted, for that window, once.

    A job that was killed tries again; what it had done is in the cache.
    """
    for language, told in look.standing.items():
        window_of = language, told["window"]
        if not told["drifted"] or "kept" not in told or window_of in tried:
            continue
        tried.add(window_of)
        window = run.storage.location(run.path(told["kept"]))
        for done in update(run, window, [language], overrides=overrides):
            print(done, flush=True)
        write_cards(run.storage, run.name)


if __name__ == "__main__":
    main(watch_usage)
