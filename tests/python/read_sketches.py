"""Reads the sketches in a checkpoint with Apache DataSketches' own package, and prints what they say as JSON."""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import polars as pl
from datasketches import hll_sketch, hll_union, kll_doubles_sketch

folder, view, fraction = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
FIXED = struct.Struct("<8sBQQ")
LG_K, STANDARD_DEVIATIONS = 12, 3


def partials(checkpoint: bytes) -> pl.DataFrame:
    """The partials of the view's chunks."""
    body, (checksum,) = checkpoint[:-4], struct.unpack("<I", checkpoint[-4:])
    assert zlib.crc32(body) == checksum
    magic, version, length, _ = FIXED.unpack_from(body)
    assert (magic, version) == (b"ANABSPD\n", 4)
    frames = FIXED.size + length
    header = json.loads(body[FIXED.size : frames])
    (of_view,) = (each for each in header["views"] if each["name"] == view)
    places = [chunk["frame"] for chunk in of_view["chunks"] if chunk["frame"]]
    return pl.concat(pl.read_parquet(io.BytesIO(body[frames + start :][:size])) for start, size in places)


def distinct(sketches: list[bytes]) -> dict:
    union = hll_union(LG_K)
    for sketch in sketches:
        union.update(hll_sketch.deserialize(sketch))
    return {
        "estimate": union.get_estimate(),
        "lower": union.get_lower_bound(STANDARD_DEVIATIONS),
        "upper": union.get_upper_bound(STANDARD_DEVIATIONS),
    }


def quantile(sketch: kll_doubles_sketch) -> dict:
    error = sketch.normalized_rank_error(False)
    at = lambda rank: sketch.get_quantile(min(max(rank, 0.0), 1.0), True)
    return {"n": sketch.n, "error": error, "value": at(fraction), "lower": at(fraction - error), "upper": at(fraction + error)}


newest = max(folder.glob("*.checkpoint"))
rows = partials(newest.read_bytes())
groups = {}
for key, group in rows.group_by("k0"):
    (kll,) = (kll_doubles_sketch.deserialize(sketch) for sketch in group["a1k"])
    groups[key[0]] = {"rows": group.height, "distinct": distinct(group["a0h"].to_list()), "quantile": quantile(kll)}
print(json.dumps(groups))
