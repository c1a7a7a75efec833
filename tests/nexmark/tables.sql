-- Nexmark's three streams: people, the auctions that they open, and the bids on these; and the side input of q13.
CREATE UNBOUNDED EXTERNAL TABLE person (
  id BIGINT, name VARCHAR, email_address VARCHAR, credit_card VARCHAR, city VARCHAR, state VARCHAR,
  date_time TIMESTAMP, extra VARCHAR
) STORED AS KAFKA LOCATION 'person' OPTIONS ('event_time' 'date_time', 'watermark' '4 seconds');

CREATE UNBOUNDED EXTERNAL TABLE auction (
  id BIGINT, item_name VARCHAR, description VARCHAR, initial_bid BIGINT, reserve BIGINT, date_time TIMESTAMP,
  expires TIMESTAMP, seller BIGINT, category BIGINT, extra VARCHAR
) STORED AS KAFKA LOCATION 'auction' OPTIONS ('event_time' 'date_time', 'watermark' '4 seconds');

CREATE UNBOUNDED EXTERNAL TABLE bid (
  auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, date_time TIMESTAMP, extra VARCHAR
) STORED AS KAFKA LOCATION 'bid' OPTIONS ('event_time' 'date_time', 'watermark' '4 seconds');

CREATE EXTERNAL TABLE side_input (auction BIGINT, value VARCHAR) STORED AS CSV LOCATION 'side_input.csv';
