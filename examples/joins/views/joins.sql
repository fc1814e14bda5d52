-- Clicks on pages of a shop. `partition_by` is what lets processes share the joins out among them.
CREATE TABLE clicks (user_id TEXT NOT NULL, url TEXT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'timestamp', watermark = '5 seconds', partition_by = 'user_id');

-- What was bought there.
CREATE TABLE purchases (user_id TEXT NOT NULL, amount BIGINT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'purchases', event_time = 'timestamp', watermark = '5 seconds', partition_by = 'user_id');

-- Who has which plan, and since when.
CREATE TABLE users (id TEXT PRIMARY KEY, plan TEXT, since TIMESTAMP NOT NULL)
WITH (topic = 'users', event_time = 'since', watermark = '5 seconds');

-- A purchase with each click of its user in the ten seconds before it or behind it.
CREATE VIEW bought AS
SELECT c.url, p.user_id, p.amount, p.timestamp AS bought_at
FROM clicks AS c JOIN purchases AS p
  ON c.user_id = p.user_id
  AND p.timestamp BETWEEN c.timestamp - INTERVAL '10 seconds' AND c.timestamp + INTERVAL '10 seconds';

-- What each page has brought in, minute by minute.
CREATE MATERIALIZED VIEW revenue_by_url
WITH (allowed_lateness = '1 minute', batch = '*/15 * * * *') AS
SELECT window_start, window_end, url, count(*) AS purchases, sum(amount) AS revenue
FROM TUMBLE(bought, bought_at, INTERVAL '1 minute')
GROUP BY window_start, window_end, url
ORDER BY revenue DESC;

-- Clicks that no purchase of their user followed within five minutes.
CREATE VIEW left_empty_handed AS
SELECT c.url, c.timestamp AS clicked_at
FROM clicks AS c LEFT JOIN purchases AS p
  ON c.user_id = p.user_id AND p.timestamp BETWEEN c.timestamp AND c.timestamp + INTERVAL '5 minutes'
WHERE p.user_id IS NULL;

CREATE MATERIALIZED VIEW clicks_without_purchase
WITH (batch = '*/15 * * * *') AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(left_empty_handed, clicked_at, INTERVAL '1 hour')
GROUP BY window_start, window_end, url
ORDER BY clicks DESC;

-- Purchases of one user that follow each other within a minute and differ by more than 10,000.
CREATE VIEW suspicious AS
SELECT user_id, amount, previous, timestamp FROM (
  SELECT user_id, amount, timestamp, LAG(amount) OVER w AS previous, LAG(timestamp) OVER w AS previous_time
  FROM purchases WINDOW w AS (PARTITION BY user_id ORDER BY timestamp)) AS t
WHERE timestamp < previous_time + INTERVAL '60 seconds' AND abs(amount - previous) > 10000;

CREATE MATERIALIZED VIEW suspicious_purchases
WITH (batch = '*/15 * * * *') AS
SELECT user_id, count(*) AS purchases, max(amount) AS largest
FROM suspicious
GROUP BY user_id;

-- What each plan has brought in: a purchase counts for the plan that its user had then.
CREATE MATERIALIZED VIEW revenue_by_plan
WITH (batch = '*/15 * * * *') AS
SELECT plan, count(*) AS purchases, sum(amount) AS revenue
FROM (SELECT u.plan, p.amount
      FROM purchases AS p JOIN users FOR SYSTEM_TIME AS OF p.timestamp AS u ON u.id = p.user_id) AS t
GROUP BY plan
ORDER BY revenue DESC;
