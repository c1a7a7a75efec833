-- The rules of a ballot, and a reference table from a file.
CREATE UNBOUNDED EXTERNAL TABLE ballots (
  voter VARCHAR NOT NULL, choice VARCHAR NOT NULL, vote INT NOT NULL,
  PRIMARY KEY (voter), FOREIGN KEY (choice) REFERENCES choices (choice), CHECK (vote = 1)
) STORED AS KAFKA LOCATION 'ballots';

CREATE MATERIALIZED VIEW result AS
SELECT c.choice, c.label, COALESCE(t.votes, 0) AS votes
FROM choices c LEFT JOIN (SELECT choice, SUM(vote) AS votes FROM ballots GROUP BY choice) t USING (choice);

CREATE MATERIALIZED VIEW leaders AS
SELECT choice, SUM(vote) AS votes FROM ballots GROUP BY choice HAVING SUM(vote) > 1;
