-- Lines of text.
CREATE TABLE lines (line TEXT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'lines', event_time = 'timestamp', watermark = '5 seconds');

-- The words in them.
CREATE VIEW words AS
SELECT word, timestamp
FROM lines CROSS JOIN UNNEST(regexp_extract_all(lower(line), '\w+')) AS w(word);

-- How often each word has come. Each change of a count is a record of the topic `word_counts`, with the word as its key.
CREATE MATERIALIZED VIEW word_counts
WITH (sink = 'kafka', topic = 'word_counts', emit = 'changes', batch = '*/15 * * * *') AS
SELECT word, count(*) AS n, max(timestamp) AS seen
FROM words
GROUP BY word;

-- The same per minute: the rows of a minute are written once, when it is over for good.
CREATE MATERIALIZED VIEW words_per_minute
WITH (sink = 'kafka', topic = 'words_per_minute', emit = 'final', batch = '*/15 * * * *') AS
SELECT window_start, window_end, word, count(*) AS n
FROM TUMBLE(words, timestamp, INTERVAL '1 minute')
GROUP BY window_start, window_end, word;

-- What is written can be read again: here as a table of the newest count of each word.
CREATE TABLE counts (word TEXT PRIMARY KEY, n BIGINT, seen TIMESTAMP NOT NULL)
WITH (topic = 'word_counts', event_time = 'seen');

-- How many words have come how often. As a count rises, its word leaves one row and joins another.
CREATE MATERIALIZED VIEW words_by_count
WITH (batch = '*/15 * * * *') AS
SELECT n AS times, count(*) AS words
FROM counts
GROUP BY n
ORDER BY times DESC;
