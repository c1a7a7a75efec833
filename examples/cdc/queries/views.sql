CREATE MATERIALIZED VIEW totals AS
SELECT COUNT(*) AS accounts, SUM(balance) AS balance FROM accounts;

CREATE MATERIALIZED VIEW by_kind
WITH (topic = 'by_kind', key = 'kind') AS
SELECT c.kind, COUNT(*) AS contracts, SUM(a.balance) AS balance
FROM contracts c JOIN accounts a ON a.id = c.account
GROUP BY c.kind;

CREATE MATERIALIZED VIEW without_contract
WITH (access = 'public') AS
SELECT a.id, a.owner FROM accounts a
WHERE NOT EXISTS (SELECT 1 FROM contracts c WHERE c.account = a.id);
