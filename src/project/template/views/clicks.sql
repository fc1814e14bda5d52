-- What an event of the topic `clicks` looks like: a JSON object with these keys.
-- `watermark` is how far out of order events may be; `max_future` rejects those whose clock is ahead.
CREATE TABLE clicks (url TEXT NOT NULL, user_id TEXT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'timestamp', watermark = '5 seconds', max_future = '1 minute');

-- Clicks on each page, minute by minute. Answers at once from the speed layer; every fifteen minutes the batch layer
-- computes them again from the archive, with the events that came too late for the speed layer.
CREATE MATERIALIZED VIEW clicks_per_url
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(clicks, timestamp, INTERVAL '1 minute')
GROUP BY window_start, window_end, url
ORDER BY clicks DESC LIMIT 1000;
