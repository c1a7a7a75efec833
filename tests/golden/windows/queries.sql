-- Clicks by page and minute, final once the watermark has passed the minute.
CREATE UNBOUNDED EXTERNAL TABLE clicks (page VARCHAR, user_id BIGINT, at TIMESTAMP)
STORED AS KAFKA LOCATION 'clicks' OPTIONS ('event_time' 'at', 'watermark' '10 seconds', 'allowed_lateness' '5 seconds');

CREATE MATERIALIZED VIEW per_minute AS
SELECT window_start, page, COUNT(*) AS n, COUNT(DISTINCT user_id) AS users
FROM tumble(clicks, at, INTERVAL '1 minute') GROUP BY window_start, page;

CREATE MATERIALIZED VIEW final_minutes WITH (mode = 'append') AS
SELECT window_start, window_end, COUNT(*) AS n FROM tumble(clicks, at, INTERVAL '1 minute') GROUP BY window_start, window_end;

CREATE MATERIALIZED VIEW visits AS
SELECT user_id, window_start, window_end, COUNT(*) AS clicks
FROM session(clicks, at, INTERVAL '20 seconds', user_id) GROUP BY user_id, window_start, window_end;
