-- The average of a seller's last ten winning bids, at each of them. Here the winning bid is the highest so far, and a
-- seller's auctions go by its time.
CREATE MATERIALIZED VIEW q6 AS
SELECT seller, id, AVG(price) OVER (
  PARTITION BY seller ORDER BY date_time, id ROWS BETWEEN 9 PRECEDING AND CURRENT ROW) AS average
FROM (
  SELECT a.id, a.seller, b.price, b.date_time,
         ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder) AS place
  FROM auction a JOIN bid b ON b.auction = a.id
  WHERE b.date_time BETWEEN a.date_time AND a.expires) ranked
WHERE place <= 1;
