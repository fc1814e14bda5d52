-- Tweets as they are written. They come in the order of their times, so a short watermark is enough.
CREATE TABLE tweets (id TEXT, user_id TEXT, text TEXT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'tweets', format = 'json', event_time = 'timestamp', watermark = '5 seconds', max_future = '1 minute');

-- What is talked about: the hashtags of the last five minutes, from minute to minute.
CREATE MATERIALIZED VIEW trending_hashtags
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end, hashtag, count(*) AS mentions
FROM HOP(tweets, timestamp, INTERVAL '1 minute', INTERVAL '5 minutes')
CROSS JOIN UNNEST(regexp_extract_all(lower(text), '#\w+')) AS h(hashtag)
GROUP BY window_start, window_end, hashtag
ORDER BY mentions DESC LIMIT 100;
