-- Bids with the number of their channel, which the address has where the channel's name is not known.
CREATE MATERIALIZED VIEW q21 AS
SELECT auction, bidder, price, channel, channel_id
FROM (
  SELECT auction, bidder, price, channel,
         CASE lower(channel)
           WHEN 'apple' THEN '0' WHEN 'google' THEN '1' WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
           ELSE array_element(regexp_match(url, '(&|^)channel_id=([^&]*)'), 2) END AS channel_id
  FROM bid) numbered
WHERE channel_id IS NOT NULL;
