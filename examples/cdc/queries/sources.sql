-- What Debezium writes: {"before": …, "after": …, "op": "c"}.
CREATE UNBOUNDED EXTERNAL TABLE accounts (
  id      BIGINT  NOT NULL,
  owner   VARCHAR NOT NULL,
  balance DECIMAL(12, 2),
  PRIMARY KEY (id)
) STORED AS KAFKA LOCATION 'accounts'
OPTIONS ('format' 'debezium-json', 'dead_letter_topic' 'accounts_rejected');

-- The newest message of a key counts; an empty one deletes.
CREATE UNBOUNDED EXTERNAL TABLE contracts (
  contract VARCHAR NOT NULL,
  account  BIGINT  NOT NULL,
  kind     VARCHAR,
  PRIMARY KEY (contract)
) STORED AS KAFKA LOCATION 'contracts'
OPTIONS ('on_conflict' 'replace', 'dead_letter_topic' 'contracts_rejected');
