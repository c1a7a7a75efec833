//! Moves votes from Postgres to Kafka so that a crash between the two loses none and doubles none.
//!
//! A vote and its outbox row are written by one statement. Messages go out in a Kafka transaction; only
//! after its commit are the outbox rows deleted. So after a crash a vote in the outbox either is on the
//! topic already (the crash came between commit and delete) or is not: the topic is read once to tell.
//! That is the transactional outbox pattern, with the topic itself as the record of what was sent.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::{AssertSqlSafe, PgPool, Row};

use super::VOTES_TOPIC;
use super::ballots::Vote;
use crate::clients;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::sink::wait_until_sent;
use crate::source::{Bounds, KafkaSource, Source, Start};

/// Fences an earlier `tally vote` whose messages may still be on their way.
const TRANSACTIONAL_ID: &str = "tally-vote";
const KAFKA_TIMEOUT: Duration = Duration::from_secs(30);
const READ_ROWS: usize = 50_000;
const READ_WAIT: Duration = Duration::from_millis(200);

/// Votes stored, and the producer that sends them.
pub struct Outbox {
    pool: PgPool,
    producer: BaseProducer,
}

impl Outbox {
    /// Takes over from whoever sent before, and sends what they left. The number of votes sent.
    pub async fn open(config: &Config, pool: &PgPool) -> Result<(Outbox, u64)> {
        let mut client = clients::kafka(config);
        client.set("transactional.id", TRANSACTIONAL_ID);
        let producer: BaseProducer = client.create().map_err(|e| Error::kafka("opening the producer", e))?;
        let producer = tokio::task::spawn_blocking(move || {
            producer.init_transactions(KAFKA_TIMEOUT).map_err(|e| Error::kafka("opening transactions", e))?;
            Ok::<_, Error>(producer)
        });
        let producer = producer.await.map_err(|e| Error::kafka("opening transactions", e))??;
        let outbox = Outbox { pool: pool.clone(), producer };
        let sent = outbox.recover(config).await?;
        Ok((outbox, sent))
    }

    /// Stores the votes of those who have not voted, with their outbox rows. Gives back what was stored.
    pub async fn store(&self, votes: &[Vote]) -> Result<Vec<Vote>> {
        self.store_unless(votes, "DO NOTHING").await
    }

    /// The same of those who have voted, whose earlier votes go.
    pub async fn replace(&self, votes: &[Vote]) -> Result<Vec<Vote>> {
        let newest = "(voter_id) DO UPDATE SET candidate_id = EXCLUDED.candidate_id, voting_time = EXCLUDED.voting_time";
        self.store_unless(votes, newest).await
    }

    async fn store_unless(&self, votes: &[Vote], there: &str) -> Result<Vec<Vote>> {
        let column = |of: fn(&Vote) -> &String| votes.iter().map(|vote| of(vote).clone()).collect::<Vec<_>>();
        let statement = format!(
            "WITH cast_now AS (
               INSERT INTO votes (voter_id, candidate_id, voting_time)
               SELECT * FROM unnest($1::text[], $2::text[], $3::text[]::timestamp[])
               ON CONFLICT {there} RETURNING voter_id, candidate_id, voting_time)
             INSERT INTO tally_internal.vote_outbox SELECT * FROM cast_now
             RETURNING voter_id, candidate_id, to_char(voting_time, 'YYYY-MM-DD HH24:MI:SS')"
        );
        // It holds nothing that comes from outside.
        let rows = sqlx::query(AssertSqlSafe(statement))
            .bind(column(|vote| &vote.voter_id))
            .bind(column(|vote| &vote.candidate_id))
            .bind(column(|vote| &vote.voting_time))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| Error::postgres("storing votes", e))?;
        Ok(rows.iter().map(vote_of).collect())
    }

    /// Sends stored votes, and `besides` them other messages (key, value), in one Kafka transaction; then
    /// takes the votes out of the outbox.
    pub async fn send(&self, votes: &[Vote], besides: &[(String, String)]) -> Result<()> {
        if votes.is_empty() {
            return Ok(());
        }
        tokio::task::block_in_place(|| self.send_transaction(votes, besides))?;
        self.delete(votes.iter().map(|vote| vote.voter_id.clone()).collect()).await
    }

    fn send_transaction(&self, votes: &[Vote], besides: &[(String, String)]) -> Result<()> {
        let failed = |e| Error::kafka(format!("writing to {VOTES_TOPIC}"), e);
        self.producer.begin_transaction().map_err(failed)?;
        let votes = votes.iter().map(|vote| (vote.voter_id.clone(), vote.to_json()));
        for (key, value) in votes.chain(besides.iter().cloned()) {
            let record = BaseRecord::to(VOTES_TOPIC).key(&key).payload(&value);
            self.producer.send(record).map_err(|(error, _)| failed(error))?;
        }
        // The commit itself would wait a tenth of a second for what is on its way.
        wait_until_sent(&self.producer)?;
        self.producer.commit_transaction(KAFKA_TIMEOUT).map_err(failed)
    }

    async fn delete(&self, voters: Vec<String>) -> Result<()> {
        sqlx::query("DELETE FROM tally_internal.vote_outbox WHERE voter_id = ANY($1)")
            .bind(voters)
            .execute(&self.pool)
            .await
            .map_err(|e| Error::postgres("clearing the outbox", e))?;
        Ok(())
    }

    /// Sends the votes of the outbox that are not on the topic. Reads the whole topic, but only after a crash.
    async fn recover(&self, config: &Config) -> Result<u64> {
        let rows = sqlx::query(
            "SELECT voter_id, candidate_id, to_char(voting_time, 'YYYY-MM-DD HH24:MI:SS') FROM tally_internal.vote_outbox",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|e| Error::postgres("reading the outbox", e))?;
        if rows.is_empty() {
            return Ok(0);
        }
        let mut pending: HashMap<String, Vote> =
            rows.iter().map(vote_of).map(|vote| (vote.voter_id.clone(), vote)).collect();
        let left = pending.len();
        let sent = tokio::task::block_in_place(|| -> Result<Vec<String>> {
            let mut sent = Vec::new();
            // What is in the outbox is recent: it is not among what the topic may have lost.
            let start = Start::EarliestAvailable;
            let mut topic = KafkaSource::open(config, VOTES_TOPIC, Bounds::UntilNow, start)?;
            let mut ended = false;
            while !ended {
                let polled = topic.poll(READ_ROWS, READ_WAIT);
                ended = polled.state.ended;
                let batch = polled.batch;
                for message in (0..batch.len() as u32).map(|i| batch.get(i)) {
                    let key = message.key.and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
                    // A bad message may have a voter's key; only the very vote counts as sent.
                    if pending.get(key).is_some_and(|vote| Some(vote.to_json().as_bytes()) == message.payload)
                    {
                        sent.extend(pending.remove(key).map(|vote| vote.voter_id));
                    }
                }
            }
            Ok(sent)
        })?;
        tracing::info!(
            "an earlier run left {left} votes in the outbox: {} were sent, {} are sent now",
            sent.len(),
            pending.len()
        );
        self.delete(sent).await?;
        let pending: Vec<_> = pending.into_values().collect();
        for chunk in pending.chunks(READ_ROWS) {
            self.send(chunk, &[]).await?;
        }
        Ok(pending.len() as u64)
    }
}

fn vote_of(row: &sqlx::postgres::PgRow) -> Vote {
    Vote { voter_id: row.get(0), candidate_id: row.get(1), voting_time: row.get(2) }
}
