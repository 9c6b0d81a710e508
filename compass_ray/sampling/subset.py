"""What a subset is made of, for all who read one: who trains on it need not load the sampler."""

from __future__ import annotations

import pyarrow as pa

from compass_ray.records import SCHEMA

SUBSET = "subset.parquet"
GAPS = "gaps.parquet"

SUBSET_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("gap", pa.float64()),
        pa.field("score", pa.float32()),
        pa.field("strategy", pa.string(), nullable=False),
    ]
)
