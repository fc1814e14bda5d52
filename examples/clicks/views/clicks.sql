-- Requests that a web server answered. Servers write them to the log up to a minute out of order.
CREATE TABLE page_views (
  user_id TEXT, method TEXT, url TEXT, status BIGINT, bytes BIGINT, referrer TEXT, user_agent TEXT,
  timestamp TIMESTAMP NOT NULL
) WITH (topic = 'page_views', format = 'json', event_time = 'timestamp', watermark = '1 minute', max_future = '1 minute');

-- Clicks on each page, minute by minute.
CREATE MATERIALIZED VIEW clicks_per_url
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(page_views, timestamp, INTERVAL '1 minute')
GROUP BY window_start, window_end, url
ORDER BY clicks DESC;

-- How busy the server is: the last ten minutes, from minute to minute.
CREATE MATERIALIZED VIEW traffic
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end,
       count(*) AS requests, sum(bytes) AS bytes, count(*) FILTER (WHERE status >= 400) AS errors
FROM HOP(page_views, timestamp, INTERVAL '1 minute', INTERVAL '10 minutes')
GROUP BY window_start, window_end;

-- Clicks of each user, since the beginning.
CREATE MATERIALIZED VIEW clicks_by_user
WITH (batch = '0 * * * *') AS
SELECT user_id, count(*) AS clicks
FROM page_views
GROUP BY user_id
ORDER BY clicks DESC;
