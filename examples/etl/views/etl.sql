-- What visitors of a shop do.
CREATE TABLE events (
  id BIGINT, event_type TEXT, user_id TEXT, product_id TEXT, price DOUBLE, sentence TEXT, context JSON,
  timestamp TIMESTAMP NOT NULL
) WITH (topic = 'events', event_time = 'timestamp', watermark = '5 seconds', partitions = 4, partition_by = 'user_id');

-- Filter and map: purchases, each once, enriched with a category and what led to it. Those of a category are in one partition.
CREATE MATERIALIZED VIEW purchases
WITH (sink = 'kafka', topic = 'purchases', delivery = 'exactly_once', partition_by = 'category') AS
SELECT id, user_id, lower(product_id) AS product,
       CASE WHEN product_id LIKE 'BOOK-%' THEN 'books' WHEN product_id LIKE 'TOY-%' THEN 'toys' ELSE 'other' END AS category,
       price, context ->> 'campaign' AS campaign, context, timestamp
FROM events
WHERE event_type = 'purchase';

-- Flat-map: a record for each word of a sentence. A word that comes twice after a failure does no harm.
CREATE MATERIALIZED VIEW words
WITH (sink = 'kafka', topic = 'words', delivery = 'at_least_once') AS
SELECT id, word, timestamp
FROM events
CROSS JOIN UNNEST(regexp_extract_all(lower(sentence), '\w+')) AS w(word);

-- What an output writes is a topic like any other: a table may read it, and views go on from there.
CREATE TABLE bought (id BIGINT, category TEXT, price DOUBLE, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'purchases', event_time = 'timestamp', watermark = '5 seconds', partitions = 4);

CREATE MATERIALIZED VIEW revenue
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end, category, count(*) AS purchases, sum(price) AS revenue
FROM TUMBLE(bought, timestamp, INTERVAL '1 minute')
GROUP BY window_start, window_end, category;
