"""What ``ray job submit`` runs: every stage of one configuration.

``ray job submit --working-dir . -- python jobs/adapt.py --config jobs/configs/demo.yaml``. The exit
code of the work is the exit code of the job; submitted again, the job goes on where it was.
"""

from __future__ import annotations

import argparse
import sys

from compass_ray.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="The YAML file of the run")
    parser.add_argument("--set", action="append", default=[], help="Override, section.key=value")
    arguments = parser.parse_args()
    overrides = [word for override in arguments.set for word in ("--set", override)]
    sys.argv = ["compass-ray", "run", arguments.config, *overrides]
    main()
