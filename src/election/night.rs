//! The script of a night: which place counts when, so that places declare one after another, the lead changes,
//! and the end is close where the votes are. It orders what the voters have chosen; it changes no vote.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::time::Duration;

/// When the first place declares, as a part of the night; the last one ends it.
const FIRST_DECLARES: f64 = 0.03;
/// How long a place counts, as a part of the night. Several places count at any time, so that what moves is never
/// one place's vote.
const COUNTING: f64 = 0.09;
/// How far the lead swings to either side, as a part of all votes.
const SWING: f64 = 0.012;
/// Half-waves of the swing: the lead changes at the end of each.
const HALF_WAVES: f64 = 3.0;

/// A ballot: the place that counts it, and the candidate's position.
pub type Ballot<'a> = (&'a str, usize);

/// When each ballot is cast, in order of time, with its position in `ballots`.
pub fn schedule(ballots: &[Ballot<'_>], night: Duration) -> Vec<(Duration, usize)> {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, (place, _)) in ballots.iter().enumerate() {
        places.entry(place).or_default().push(i);
    }
    let order = order(ballots, &places);
    let mut times = Vec::with_capacity(ballots.len());
    for (nth, place) in order.iter().enumerate() {
        let part = if order.len() > 1 { nth as f64 / (order.len() - 1) as f64 } else { 1.0 };
        let end = FIRST_DECLARES + (1.0 - FIRST_DECLARES) * part;
        let begin = (end - COUNTING).max(0.0);
        let of = &places[place];
        for (i, ballot) in of.iter().enumerate() {
            let counted = (i + 1) as f64 / of.len() as f64;
            times.push((night.mul_f64(begin + (end - begin) * counted), *ballot));
        }
    }
    times.sort();
    times
}

/// The order in which places declare. At each step the place that brings the two leaders' difference closest to
/// where it should be by then; places that move it far come first, so that the end is fine-grained.
fn order<'a>(ballots: &[Ballot<'_>], places: &BTreeMap<&'a str, Vec<usize>>) -> Vec<&'a str> {
    let (first, second) = leaders(ballots);
    let difference = |of: &[usize]| -> f64 {
        let votes = |candidate| of.iter().filter(|i| ballots[**i].1 == candidate).count() as f64;
        votes(first) - votes(second)
    };
    let mut left: Vec<(&str, f64, f64)> =
        places.iter().map(|(place, of)| (*place, difference(of), of.len() as f64)).collect();
    left.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(b.0)));
    let total = ballots.len() as f64;
    let end: f64 = left.iter().map(|place| place.1).sum();
    let wanted = |part: f64| part * end - SWING * total * (HALF_WAVES * PI * part).sin();
    let at_once = left.len().div_ceil(3);
    let (mut order, mut ahead, mut counted) = (Vec::new(), 0.0, 0.0);
    while !left.is_empty() {
        let miss = |place: &(&str, f64, f64)| (ahead + place.1 - wanted((counted + place.2) / total)).abs();
        let near = left.iter().take(at_once).enumerate().min_by(|a, b| miss(a.1).total_cmp(&miss(b.1)));
        let nearest = near.map_or(0, |(i, _)| i);
        let (place, difference, votes) = left.remove(nearest);
        order.push(place);
        ahead += difference;
        counted += votes;
    }
    order
}

/// Positions of the two candidates with most votes.
fn leaders(ballots: &[Ballot<'_>]) -> (usize, usize) {
    let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, candidate) in ballots {
        *votes.entry(*candidate).or_default() += 1;
    }
    let mut ranked: Vec<_> = votes.into_iter().collect();
    ranked.sort_by_key(|(candidate, votes)| (std::cmp::Reverse(*votes), *candidate));
    let at = |place: usize| ranked.get(place).map_or(place, |(candidate, _)| *candidate);
    (at(0), at(1))
}

#[cfg(test)]
mod tests {
    use super::super::ballots::{Habits, choose};
    use super::super::places::Leanings;
    use super::super::population::voter;
    use super::*;

    const NIGHT: Duration = Duration::from_secs(300);

    fn votes(seed: u64, voters: u64) -> Vec<(&'static str, usize)> {
        let leanings = Leanings::new(seed, 5);
        let vote = |i| {
            let voter = voter(seed, i);
            let shares = leanings.of(voter.address.state);
            let choice =
                choose(seed, &voter.voter_id, shares, Habits { turnout: 0.7, faulty: 0.0, revote: 0.0 });
            choice.candidate.map(|candidate| (voter.address.state, candidate))
        };
        (0..voters).filter_map(vote).collect()
    }

    #[test]
    fn places_declare_one_after_another_until_the_night_ends() {
        let ballots = votes(1, 20_000);
        let times = schedule(&ballots, NIGHT);
        assert_eq!(times.len(), ballots.len());
        assert_eq!(times.last().unwrap().0, NIGHT);
        let mut declared: BTreeMap<&str, Duration> = BTreeMap::new();
        for (at, ballot) in &times {
            declared.insert(ballots[*ballot].0, *at);
        }
        let mut ends: Vec<Duration> = declared.values().copied().collect();
        ends.sort();
        assert_eq!(ends.len(), 68);
        assert!(ends[0] <= NIGHT / 30, "the first declares early: {:?}", ends[0]);
        let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest < NIGHT / 60, "nobody waits long for the next: {longest:?}");
        let sorted: Vec<usize> = {
            let mut all: Vec<_> = times.iter().map(|(_, i)| *i).collect();
            all.sort();
            all
        };
        assert!(sorted.iter().enumerate().all(|(i, ballot)| i == *ballot), "every ballot once");
    }

    #[test]
    fn the_lead_changes_and_the_end_is_close() {
        let ballots = votes(1, 20_000);
        let (mut votes, mut changes, mut leader) = ([0u32; 5], 0, None);
        for (nth, (_, ballot)) in schedule(&ballots, NIGHT).into_iter().enumerate() {
            votes[ballots[ballot].1] += 1;
            // Not the flicker of the first votes, or around a tie: who is ahead by more than a tenth of a percent.
            let mut ranked: Vec<usize> = (0..5).collect();
            ranked.sort_by_key(|i| std::cmp::Reverse(votes[*i]));
            if nth > 500
                && (votes[ranked[0]] - votes[ranked[1]]) as usize * 1000 > nth
                && leader != Some(ranked[0])
            {
                changes += u32::from(leader.is_some());
                leader = Some(ranked[0]);
            }
        }
        votes.sort();
        let margin = f64::from(votes[4] - votes[3]) / ballots.len() as f64;
        assert!(changes >= 2, "the lead changes {changes} times");
        assert!(margin < 0.02, "{votes:?}");
    }
}
