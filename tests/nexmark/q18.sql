-- The last bid of each bidder on each auction; of several at one time the highest.
CREATE MATERIALIZED VIEW q18 AS
SELECT auction, bidder, price, channel, url, date_time, extra
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, price DESC) AS place
  FROM bid) ranked
WHERE place <= 1;
