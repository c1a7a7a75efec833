//! How a voter votes, and what can go wrong with a message. Both follow from the seed and the voter's id.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// A vote as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    pub voter_id: String,
    pub candidate_id: String,
    /// 'YYYY-MM-DD HH:MM:SS' in UTC.
    pub voting_time: String,
}

/// What a voter does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Position of the candidate; `None` stays at home.
    pub candidate: Option<usize>,
    /// The ballot says an hour ago: valid, but late.
    pub late: bool,
    /// A bad message to be sent besides.
    pub fault: Option<Fault>,
    /// Position of the candidate of whoever votes again.
    pub again: Option<usize>,
}

/// How voters vote: shares of them, from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Who votes.
    pub turnout: f64,
    /// Beside whose vote something goes wrong.
    pub faulty: f64,
    /// Who votes again.
    pub revote: f64,
}

/// A bad message: what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    MalformedJson,
    MissingField,
    UnknownCandidate,
    UnregisteredVoter,
    SecondVote,
    WrongCount,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::MalformedJson, "malformed JSON"),
    (Fault::MissingField, "missing field"),
    (Fault::UnknownCandidate, "unknown candidate"),
    (Fault::UnregisteredVoter, "unregistered voter"),
    (Fault::SecondVote, "second vote"),
    (Fault::WrongCount, "two votes in one"),
];

impl Vote {
    /// The message's value.
    pub fn to_json(&self) -> String {
        json!({
            "voter_id": self.voter_id, "candidate_id": self.candidate_id,
            "voting_time": self.voting_time, "vote": 1,
        })
        .to_string()
    }
}

/// What the voter does: votes with the probability of `turnout`, as the voter's place leans: `shares` are those of the
/// candidates there.
pub fn choose(seed: u64, voter_id: &str, shares: &[f64], habits: Habits) -> Choice {
    let mut rng = rng(seed, voter_id);
    let votes = rng.random_bool(habits.turnout);
    let candidate = lean(&mut rng, shares);
    let goes_wrong = rng.random_bool(habits.faulty);
    // One kind more than there are faults: the vote that is only late.
    let kind = rng.random_range(0..=FAULTS.len());
    Choice {
        candidate: votes.then_some(candidate),
        late: goes_wrong && kind == FAULTS.len(),
        fault: FAULTS.get(kind).filter(|_| goes_wrong).map(|(fault, _)| *fault),
        again: rng.random_bool(habits.revote).then(|| lean(&mut rng, shares)),
    }
}

fn lean(rng: &mut StdRng, shares: &[f64]) -> usize {
    let mut left = rng.random::<f64>() * shares.iter().sum::<f64>();
    let mut candidate = 0;
    while candidate + 1 < shares.len() && left >= shares[candidate] {
        left -= shares[candidate];
        candidate += 1;
    }
    candidate
}

impl Fault {
    /// For people.
    pub fn name(self) -> &'static str {
        FAULTS.iter().find(|(fault, _)| *fault == self).map_or("", |(_, name)| name)
    }

    /// Key and value of the bad message that goes with `vote`.
    pub fn message(self, vote: &Vote, seed: u64) -> (String, String) {
        let mut bad = vote.clone();
        let value = match self {
            Fault::MalformedJson => {
                let json = vote.to_json();
                json[..json.len() / 2].to_string()
            }
            Fault::MissingField => json!({ "voter_id": vote.voter_id, "vote": 1 }).to_string(),
            Fault::UnknownCandidate => {
                bad.candidate_id = "nobody".into();
                bad.to_json()
            }
            Fault::UnregisteredVoter => {
                let id: [u8; 16] = rng(seed, &vote.voter_id).random();
                bad.voter_id = format!("stranger-{:032x}", u128::from_le_bytes(id));
                bad.to_json()
            }
            Fault::SecondVote => vote.to_json(),
            Fault::WrongCount => vote.to_json().replace("\"vote\":1", "\"vote\":2"),
        };
        (bad.voter_id, value)
    }
}

fn rng(seed: u64, voter_id: &str) -> StdRng {
    StdRng::seed_from_u64(seed ^ super::hash(voter_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_repeat_and_follow_turnout_and_shares() {
        let shares = [0.86, 0.64, 0.5];
        let habits = Habits { turnout: 0.7, faulty: 0.1, revote: 0.2 };
        let choose = |i| choose(3, &format!("voter-{i}"), &shares, habits);
        let choices: Vec<_> = (0..20_000).map(choose).collect();
        assert_eq!(choices[17], choose(17));
        let share = |matches: &dyn Fn(&Choice) -> bool| {
            choices.iter().filter(|c| matches(c)).count() as f64 / 20_000.0
        };
        assert!((share(&|c| c.candidate.is_some()) - 0.7).abs() < 0.02);
        assert!((share(&|c| c.candidate == Some(0)) - 0.7 * 0.43).abs() < 0.02);
        assert!((share(&|c| c.candidate == Some(2)) - 0.7 * 0.25).abs() < 0.02);
        assert!((share(&|c| c.late || c.fault.is_some()) - 0.1).abs() < 0.01);
        assert!((share(&|c| c.again.is_some()) - 0.2).abs() < 0.01);
        assert!((share(&|c| c.again.is_some_and(|again| c.candidate != Some(again))) - 0.15).abs() < 0.02);
        for (fault, _) in FAULTS {
            assert!(choices.iter().any(|c| c.fault == Some(fault)), "{fault:?} never happens");
        }
    }

    #[test]
    fn a_fault_is_never_a_valid_first_vote() {
        let vote = Vote {
            voter_id: "v".into(),
            candidate_id: "c".into(),
            voting_time: "2026-05-07 10:00:00".into(),
        };
        for (fault, _) in FAULTS {
            let (key, value) = fault.message(&vote, 1);
            let same = serde_json::from_str::<serde_json::Value>(&value).is_ok_and(|json| {
                json == serde_json::from_str::<serde_json::Value>(&vote.to_json()).unwrap()
            });
            assert_eq!(same, fault == Fault::SecondVote, "{value}");
            assert_eq!(key == "v", fault != Fault::UnregisteredVoter);
        }
    }
}
