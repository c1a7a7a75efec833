-- The average of the highest bids of a category's auctions.
CREATE MATERIALIZED VIEW q4 AS
SELECT category, AVG(final) AS average
FROM (
  SELECT a.id, a.category, MAX(b.price) AS final
  FROM auction a JOIN bid b ON b.auction = a.id
  WHERE b.date_time BETWEEN a.date_time AND a.expires
  GROUP BY a.id, a.category) winning
GROUP BY category;
