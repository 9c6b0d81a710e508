"""What ``ray job submit`` runs: every stage of one configuration.

``ray job submit --working-dir . -- python jobs/adapt.py --config jobs/configs/demo.yaml --set
run.storage=s3://bucket/compass``; a relative storage would be inside the job's own copy of the
folder. The exit code of the work is the exit code of the job; submitted again, the job goes on
where it was.
"""

from __future__ import annotations

from compass_ray.cli import run_job

if __name__ == "__main__":
    run_job("run", __doc__)
