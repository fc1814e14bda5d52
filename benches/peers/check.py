"""Recounts the benchmark's view `trending_hashtags` from the topic in plain Python, and compares a peer's answer to it.

The answer is a folder of CSV files without a header: window_start, window_end, hashtag, mentions. Where hashtags tie for
a window's last places any of them will do.
"""

import argparse
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

SLIDE, SIZE, TOP = 60, 300, 100
HASHTAG = re.compile(r"#\w+")


def recount(brokers, topic, events):
    """Every window's counts, by the window's start in seconds since 1970. A minute's counts are kept once, not five
    times."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "anabranch-peer-check", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    minutes = defaultdict(Counter)
    read = 0
    while read < events:
        messages = consumer.consume(10_000, 20)
        if not messages:
            sys.exit(f"{topic} holds {read} events, not {events}")
        for message in messages:
            event = json.loads(message.value())
            # All times are like 2024-01-15T00:03:34.328Z, with or without a fraction.
            minutes[event["timestamp"][:16]].update(HASHTAG.findall(event["text"].lower()))
        read += len(messages)
    consumer.close()
    counts = {}
    for minute, tags in minutes.items():
        start = int(datetime.strptime(minute, "%Y-%m-%dT%H:%M").replace(tzinfo=timezone.utc).timestamp())
        counts[start] = tags
    starts = {start - back for start in counts for back in range(0, SIZE, SLIDE)}
    windows = {}
    for start in sorted(starts):
        window = sum((counts.get(start + at, Counter()) for at in range(0, SIZE, SLIDE)), Counter())
        if window:
            windows[start] = window
    return windows


def answer(folder):
    """A peer's rows by their window's start."""
    windows = defaultdict(list)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open(newline="") as rows:
            for start, end, hashtag, mentions in csv.reader(rows):
                start, end = (
                    datetime.fromisoformat(time.removesuffix("Z")).replace(tzinfo=timezone.utc) for time in (start, end)
                )
                if end - start != timedelta(seconds=SIZE):
                    sys.exit(f"a window from {start} to {end}")
                windows[int(start.timestamp())].append((hashtag, int(mentions)))
    return windows


def differences(expected, given):
    for start in sorted(expected.keys() | given.keys()):
        at = datetime.fromtimestamp(start, timezone.utc).isoformat()
        counts, rows = expected.get(start, Counter()), given.get(start, [])
        places = sorted(counts.values(), reverse=True)[:TOP]
        if sorted((mentions for _, mentions in rows), reverse=True) != places:
            yield f"{at}: {len(rows)} rows whose counts aren't those of the {len(places)} first"
        if len({hashtag for hashtag, _ in rows}) != len(rows):
            yield f"{at}: a hashtag twice"
        for hashtag, mentions in rows:
            if counts[hashtag] != mentions:
                yield f"{at}: {hashtag} {mentions} times, not {counts[hashtag]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", required=True, help="HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True, help="a folder of CSV files")
    options = parser.parse_args()
    expected = recount(options.brokers, options.topic, options.events)
    given = answer(options.answer)
    found = list(differences(expected, given))
    for difference in found[:20]:
        print(difference)
    if found:
        sys.exit(f"{len(found)} differences in {len(expected)} windows")
    rows = sum(len(rows) for rows in given.values())
    print(f"equal to the recount: {rows} rows in {len(expected)} windows")


if __name__ == "__main__":
    main()
