"""What ``ray job submit`` runs: every stage of one configuration.

``ray job submit --working-dir . -- python jobs/adapt.py --config jobs/configs/demo.yaml
--set run.storage=s3://bucket/compass``. The storage is a URI or an absolute path that every node
sees: a relative one would lie in the files that Ray unpacks for the job. The exit code of the work
is the exit code of the job; submitted again, the job goes on where it was.
"""

from __future__ import annotations

from compass_ray.cli import run_job

if __name__ == "__main__":
    run_job("run", __doc__)
