"""Does one thing to an archive as any program with deltalake may, and prints the events that it holds then as JSON."""

import json
import os
import sys
from collections import Counter

import polars as pl
from deltalake import DeltaTable

path, operation, *arguments = sys.argv[1:]
table = DeltaTable(path)
match operation:
    case "read":
        pass
    case "delete":
        table.delete(arguments[0])
    case "update":
        table.update(predicate=arguments[0], new_values={"name": "'hidden'"})
    case "restore":
        table.restore(int(arguments[0]))
    case "optimize":
        table.optimize.compact()
    case "z-order":
        table.optimize.z_order(["name"])
    case "vacuum":
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    case "clean":
        # All that a checkpoint at the newest version makes superfluous.
        table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
        table.create_checkpoint()
        table.cleanup_metadata()
    case _:
        sys.exit(f"no operation {operation}")

table = DeltaTable(path)
rows = pl.from_arrow(table.to_pyarrow_table(columns=["name", "_partition", "_offset"]))
print(
    json.dumps(
        {
            "version": table.version(),
            "names": dict(Counter(rows["name"].to_list())),
            "rows": rows.height,
            "offsets": rows.select("_partition", "_offset").n_unique(),
        }
    )
)

# A thread of pyarrow's that wants the interpreter while it ends would have it abort.
sys.stdout.flush()
os._exit(0)
