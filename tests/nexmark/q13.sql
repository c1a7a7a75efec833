-- Bids with what a table says of their auctions.
CREATE MATERIALIZED VIEW q13 AS
SELECT b.auction, b.bidder, b.price, b.date_time, s.value
FROM bid b JOIN side_input s ON s.auction = b.auction % 10000;
