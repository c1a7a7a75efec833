-- The auctions with the most bids of ten seconds, every two seconds.
CREATE MATERIALIZED VIEW q5 AS
WITH counts AS (
  SELECT auction, window_start, COUNT(*) AS num
  FROM hop(bid, date_time, INTERVAL '2 seconds', INTERVAL '10 seconds')
  GROUP BY auction, window_start)
SELECT c.auction, c.num, c.window_start
FROM counts c
JOIN (SELECT window_start, MAX(num) AS most FROM counts GROUP BY window_start) m
  ON m.window_start = c.window_start AND c.num = m.most;
