-- The election's tables, as the reference system has them.
CREATE TABLE candidates (
  candidate_id      VARCHAR PRIMARY KEY,
  candidate_name    VARCHAR NOT NULL,
  party_affiliation VARCHAR NOT NULL,
  biography         TEXT NOT NULL,
  campaign_platform TEXT NOT NULL,
  photo_url         TEXT NOT NULL
);

CREATE TABLE voters (
  voter_id            VARCHAR PRIMARY KEY,
  voter_name          VARCHAR NOT NULL,
  date_of_birth       DATE NOT NULL,
  gender              VARCHAR NOT NULL,
  nationality         VARCHAR NOT NULL,
  registration_number VARCHAR NOT NULL,
  address_street      VARCHAR NOT NULL,
  address_city        VARCHAR NOT NULL,
  address_state       VARCHAR NOT NULL,
  address_country     VARCHAR NOT NULL,
  address_postcode    VARCHAR NOT NULL,
  email               VARCHAR NOT NULL,
  phone_number        VARCHAR NOT NULL,
  cell_number         VARCHAR NOT NULL,
  picture             TEXT NOT NULL,
  registered_age      INTEGER NOT NULL
);

CREATE TABLE votes (
  voter_id     VARCHAR UNIQUE,
  candidate_id VARCHAR,
  voting_time  TIMESTAMP,
  vote         INT DEFAULT 1,
  PRIMARY KEY (voter_id, candidate_id)
);
