-- Bids with the day and minute by which Nexmark's are put into files of a file system; here they are rows.
CREATE MATERIALIZED VIEW q10 AS
SELECT auction, bidder, price, date_time, extra, to_char(date_time, '%Y-%m-%d') AS day,
       to_char(date_time, '%H:%M') AS minute
FROM bid;
