-- The stream of ballots, and the rules that a ballot must keep. A message that breaks one is not counted:
-- it goes to the dead-letter topic with the rule's name and the reason.
CREATE UNBOUNDED EXTERNAL TABLE votes (
  voter_id     VARCHAR   NOT NULL,
  candidate_id VARCHAR   NOT NULL,
  voting_time  TIMESTAMP NOT NULL,
  vote         INT       NOT NULL,
  PRIMARY KEY (voter_id),                                      -- the first vote counts
  FOREIGN KEY (candidate_id) REFERENCES candidates (candidate_id),
  FOREIGN KEY (voter_id)     REFERENCES voters (voter_id),
  CHECK (vote = 1)
) STORED AS KAFKA LOCATION 'votes_topic'
OPTIONS ('format' 'json', 'event_time' 'voting_time', 'watermark' '1 minute', 'dead_letter_topic' 'votes_rejected');
