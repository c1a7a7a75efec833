-- How many bids somebody made in ten seconds: of event time, where Nexmark's are of the clock, which has no one answer.
CREATE MATERIALIZED VIEW q12 AS
SELECT bidder, COUNT(*) AS bid_count, window_start, window_end
FROM tumble(bid, date_time, INTERVAL '10 seconds')
GROUP BY bidder, window_start, window_end;
