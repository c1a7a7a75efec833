-- The highest bids of ten seconds.
CREATE MATERIALIZED VIEW q7 AS
SELECT b.auction, b.price, b.bidder, b.date_time, b.extra
FROM tumble(bid, date_time, INTERVAL '10 seconds') b
JOIN (
  SELECT window_start, MAX(price) AS highest
  FROM tumble(bid, date_time, INTERVAL '10 seconds')
  GROUP BY window_start) h ON h.window_start = b.window_start AND b.price = h.highest;
