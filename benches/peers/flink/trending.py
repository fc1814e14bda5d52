"""The benchmark's view `trending_hashtags` in Flink SQL, over a Kafka topic that is there already. See ../README.md."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from pyflink.common import Configuration
from pyflink.java_gateway import get_gateway
from pyflink.table import EnvironmentSettings, TableEnvironment

SOURCE = r"""
CREATE TABLE tweets (
  text STRING,
  `timestamp` TIMESTAMP_LTZ(3),
  WATERMARK FOR `timestamp` AS `timestamp` - INTERVAL '5' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = '{topic}',
  'properties.bootstrap.servers' = '{brokers}',
  'properties.group.id' = 'anabranch-peer-flink',
  'properties.max.partition.fetch.bytes' = '8388608',
  'properties.fetch.max.bytes' = '67108864',
  'scan.startup.mode' = 'earliest-offset',
  'scan.bounded.mode' = 'latest-offset',
  'scan.topic-partition-discovery.interval' = '0',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
)
"""

# Group 0 is the whole match. Unnested before HOP, so that the planner fuses HOP into the aggregation's slices.
HASHTAGS = r"""
CREATE TEMPORARY VIEW hashtags AS
SELECT t.`timestamp`, h.hashtag
FROM tweets AS t
CROSS JOIN UNNEST(REGEXP_EXTRACT_ALL(LOWER(t.text), '#\w+', 0)) AS h (hashtag)
"""

MENTIONS = r"""
CREATE TEMPORARY VIEW mentions AS
SELECT window_start, window_end, hashtag, COUNT(*) AS mentions
FROM HOP(TABLE hashtags, DESCRIPTOR(`timestamp`), INTERVAL '1' MINUTE, INTERVAL '5' MINUTE)
GROUP BY window_start, window_end, hashtag
"""

# One subtask ranks all of a window's hashtags.
TOP = """
SELECT window_start, window_end, hashtag, mentions FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY mentions DESC) AS place FROM mentions
) WHERE place <= 100
"""

# Each subtask ranks its own share of a window's hashtags, and then one ranks their first hundreds.
TOP_IN_SHARES = """
SELECT window_start, window_end, hashtag, mentions FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY mentions DESC) AS place FROM (
    SELECT window_start, window_end, hashtag, mentions FROM (
      SELECT *, ROW_NUMBER() OVER (
        PARTITION BY window_start, window_end, MOD(HASH_CODE(hashtag), {shares}) ORDER BY mentions DESC
      ) AS place FROM mentions
    ) WHERE place <= 100
  )
) WHERE place <= 100
"""

SINK = """
CREATE TABLE trending_hashtags (
  window_start TIMESTAMP(3), window_end TIMESTAMP(3), hashtag STRING, mentions BIGINT
) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')
"""


def settings(options):
    config = {
        "execution.runtime-mode": "STREAMING",
        "parallelism.default": str(options.parallelism),
        "taskmanager.numberOfTaskSlots": str(options.parallelism),
        "pipeline.jars": options.connector.resolve().as_uri(),
        "pipeline.object-reuse": "true",
        "pipeline.generic-types": "false",
        "state.backend.type": "hashmap",
        # The windows' buffers of both phases live in managed memory, whose default is 128 MB here.
        "taskmanager.memory.managed.size": "1g",
        "taskmanager.memory.network.min": "256m",
        "taskmanager.memory.network.max": "256m",
        "rest.flamegraph.enabled": "false",
        "table.local-time-zone": "UTC",
        "table.optimizer.agg-phase-strategy": "TWO_PHASE",
    }
    if options.checkpoints > 0:
        config["execution.checkpointing.interval"] = f"{options.checkpoints} s"
        config["execution.checkpointing.storage"] = "filesystem"
        config["execution.checkpointing.dir"] = (options.out / "checkpoints").resolve().as_uri()
    if options.mini_batch:
        config["table.exec.mini-batch.enabled"] = "true"
        config["table.exec.mini-batch.allow-latency"] = "1 s"
        config["table.exec.mini-batch.size"] = "50000"
    for pair in options.set:
        key, value = pair.split("=", 1)
        config[key] = value
    configuration = Configuration()
    for key, value in config.items():
        configuration.set_string(key, value)
    return EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()


def held(brokers, topic):
    """How many events the topic holds."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "anabranch-peer-flink"})
    try:
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=20) for p in partitions]
    finally:
        consumer.close()
    return sum(high - low for low, high in ends)


def cpu():
    """CPU seconds so far: of the JVM that runs Flink, and of everything on the machine."""
    tick = os.sysconf("SC_CLK_TCK")
    pid = get_gateway().jvm.java.lang.ProcessHandle.current().pid()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (int(fields[11]) + int(fields[12])) / tick, (user + nice + system + irq + softirq) / tick


def once(options, explain):
    """Runs the job once. Gives its own seconds, from its creation to its end, those around submitting it too, and the
    CPU seconds meanwhile."""
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    table = TableEnvironment.create(settings(options))
    table.execute_sql(SOURCE.format(topic=options.topic, brokers=options.brokers))
    table.execute_sql(HASHTAGS)
    table.execute_sql(MENTIONS)
    table.execute_sql(SINK.format(path=(options.out / "trending_hashtags").resolve().as_uri()))
    top = TOP if options.parallelism == 1 or not options.shares else TOP_IN_SHARES.format(shares=options.parallelism)
    insert = f"INSERT INTO trending_hashtags {top}"
    if explain:
        print(table.explain_sql(insert))
    ours, all_ = cpu()
    started = time.monotonic()
    outcome = table.execute_sql(insert)
    job = outcome.get_job_client().get_job_execution_result().result()
    around = time.monotonic() - started
    ours_now, all_now = cpu()
    return job.get_net_runtime() / 1000, around, ours_now - ours, all_now - all_


def main():
    started = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", required=True, help="HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int, required=True, help="how many events the topic holds; else it stops")
    parser.add_argument("--connector", type=Path, required=True, help="the jar flink-sql-connector-kafka")
    parser.add_argument("--out", type=Path, required=True, help="a folder of its own, emptied before each run")
    parser.add_argument("--runs", type=int, default=3, help="in one JVM, so that all but the first are warm")
    parser.add_argument("--parallelism", type=int, default=cores)
    parser.add_argument("--checkpoints", type=int, default=10, metavar="SECONDS", help="0 for none")
    parser.add_argument("--shares", action=argparse.BooleanOptionalAction, default=True, help="rank in two steps")
    parser.add_argument("--mini-batch", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another option of Flink's")
    parser.add_argument("--explain", action="store_true", help="print the plan too")
    options = parser.parse_args()

    events = held(options.brokers, options.topic)
    if events != options.events:
        sys.exit(f"{options.topic} holds {events} events, not {options.events}")
    jobs = []
    for run in range(1, options.runs + 1):
        job, around, ours, all_ = once(options, options.explain and run == 1)
        jobs.append(job)
        print(
            f"Flink, run {run}: {events} events in {job:.2f} s from the job's start to its end: "
            f"{events / job / 1e6:.3f} million/s ({around:.2f} s with planning and starting the cluster). "
            f"CPU: {ours:.1f} s in Flink's JVM, {all_ - ours:.1f} s in the rest of the machine",
            flush=True,
        )
    print(
        f"Flink, best of {len(jobs)}: {events / min(jobs) / 1e6:.3f} million/s, parallelism {options.parallelism}, "
        f"on {cores} cores; everything with starting Python and the JVM: {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
