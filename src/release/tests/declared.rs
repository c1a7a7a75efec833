//! Places that are shown when their last ballot is counted, beside a total that moves all the time.

use super::super::choices::Choices;
use super::super::links::Links;
use super::*;

/// A place is shown when its last ballot is counted, as a query does it.
#[test]
fn who_subtracts_places_that_are_shown_when_they_are_counted_finds_no_rest() {
    fn is_counted(count: &Count, place: &str) -> bool {
        let expected = BTreeMap::from([("Kent", 40), ("Leeds", 25), ("York", 15), ("Rutland", 3)]);
        count.ballots.iter().filter(|ballot| ballot.0 == place).count() == expected[place]
    }
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..20 {
        let mut count = Count::new(POLICY);
        count.places = Some(is_counted);
        count.expected = Some(83);
        count.publish(Duration::ZERO);
        let places = [("Kent", 40), ("Leeds", 25), ("York", 15), ("Rutland", 3)];
        let mut ballots: Vec<&str> = places.iter().flat_map(|(place, n)| vec![*place; *n]).collect();
        ballots.shuffle(&mut random);
        for place in ballots {
            count.count(place, if random.random_bool(0.6) { "a" } else { "b" });
            count.publish(Duration::from_millis(random.random_range(0..1_000)));
        }
        count.publish(POLICY.interval);
        let last = count.releases.last().unwrap();
        assert!(last.is_complete && last.rows == 83);
        for release in &count.releases {
            let mut rest = values(&release.published.views["totals"]);
            by_place(release).into_iter().for_each(|((_, choice), n)| *rest.get_mut(&choice).unwrap() -= n);
            rest.retain(|_, n| *n != 0);
            let sum: i64 = rest.values().sum();
            assert!(rest.is_empty() || (rest.len() > 1 && sum >= 10), "{rest:?} are left");
        }
        let shown = by_place(last);
        assert!(!shown.keys().any(|(place, _)| place == "Rutland"), "{shown:?}");
        // With Rutland one larger place stays hidden, or Rutland would be what is left.
        assert_eq!(shown.len(), 4, "{shown:?}");
    }
}

/// A place is in the view once it is counted.
fn has_declared(count: &Count, place: &str) -> bool {
    count.ballots.iter().filter(|ballot| ballot.0 == place).count() == count.sizes[place]
}

/// Places count two at a time, so that one of them fills nearly all of some releases.
fn places_in_turn(seed: u64, tells_operator: bool) -> Count {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut count = Count::new(POLICY);
    count.places = Some(has_declared);
    count.tells_operator = tells_operator;
    count.sizes = ["Kent", "Leeds", "York", "Devon", "Rutland"]
        .into_iter()
        .map(|place| (place, random.random_range(12..40)))
        .collect();
    let all = count.sizes.values().sum::<usize>();
    count.expected = Some(all as u64);
    count.publish(Duration::ZERO);
    let mut left: Vec<(&str, usize)> = count.sizes.clone().into_iter().collect();
    left.shuffle(&mut random);
    while !left.is_empty() {
        let place = usize::from(left.len() > 1 && random.random_bool(0.3));
        left[place].1 -= 1;
        let name = left[place].0;
        left.retain(|(_, ballots)| *ballots > 0);
        count.count(name, if random.random_bool(0.6) { "a" } else { "b" });
        count.publish(Duration::from_millis(random.random_range(0..1_500)));
    }
    count.publish(POLICY.interval);
    count
}

#[test]
fn a_place_that_fills_nearly_all_of_some_releases_is_shown_only_where_no_few_are_left() {
    let (mut unguarded, mut shown) = (0, 0);
    for seed in 0..30 {
        let count = places_in_turn(seed, true);
        assert_eq!(exposed(&count), [], "seed {seed}");
        let last = count.releases.last().unwrap();
        assert!(last.is_complete, "seed {seed}");
        shown += by_place(last).len() / 2;
        unguarded += usize::from(!exposed(&places_in_turn(seed, false)).is_empty());
    }
    assert!(unguarded > 0, "the attack finds nobody, whatever is shown");
    assert!(shown > 30, "only {shown} places of 150 are shown");
}

/// So many who chose `a` and `b`.
fn choices(a: i64, b: i64) -> Choices {
    let batch = RecordBatch::try_from_iter([
        ("choice", Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef),
        ("votes", Arc::new(Int64Array::from(vec![a, b])) as ArrayRef),
    ]);
    let secret = Secret { by: Vec::new(), choice: vec!["choice".into()], counted_in: "votes".into() };
    super::super::choices::all(&batch.unwrap(), &secret).unwrap()
}

/// Of each group, how many chose `a` and `b`.
type Totals<'a> = &'a [(&'a str, i64, i64)];

/// Notes releases of these totals by group, and tells which of the groups may then be shown.
fn showable(links: &mut Links, releases: &[Totals]) -> Vec<String> {
    for release in releases {
        let of = |(group, a, b): &(&str, i64, i64)| (Some(group.as_bytes().to_vec()), choices(*a, *b));
        links.note(Some(release.iter().map(of).collect()));
    }
    let groups: Vec<Vec<u8>> =
        releases.last().unwrap().iter().map(|(group, ..)| group.as_bytes().to_vec()).collect();
    // Each by itself.
    let may = |group: &&Vec<u8>| links.showable(std::slice::from_ref(*group)) == [true];
    groups.iter().filter(may).map(|group| String::from_utf8(group.clone()).unwrap()).collect()
}

#[test]
fn a_group_is_tied_to_the_hidden_ones_by_all_their_releases_together() {
    let cases: [(&[Totals], &[&str]); 6] = [
        // One release: what is left of it are the others.
        (&[&[("kent", 20, 20), ("york", 6, 5)]], &["kent", "york"]),
        (&[&[("kent", 20, 20), ("york", 6, 3)]], &[]),
        (&[&[("kent", 20, 20), ("york", 12, 0)]], &[]),
        // York's 4 in the first release and 8 in the second are 12, but the second is by itself.
        (&[&[("kent", 20, 20), ("york", 2, 2)], &[("kent", 20, 20), ("york", 6, 6)]], &[]),
        (&[&[("kent", 20, 20), ("york", 3, 3)], &[("kent", 30, 30), ("york", 6, 6)]], &["kent", "york"]),
        // No release has both: nothing is told that the totals do not tell.
        (&[&[("kent", 9, 9), ("york", 0, 0)], &[("kent", 9, 9), ("york", 9, 9)]], &["kent", "york"]),
    ];
    for (releases, expected) in cases {
        assert_eq!(showable(&mut Links::new(10), releases), expected, "{releases:?}");
    }
}

#[test]
fn what_is_forgotten_or_was_missed_ties_nothing() {
    let both: Totals = &[("kent", 20, 20), ("york", 10, 10)];
    let mut links = Links::new(10);
    links.note(Some(HashMap::new()));
    links.note(None);
    assert_eq!(showable(&mut links, &[both]), [""; 0], "nobody knows in which release they came");
    let mut links = Links::bounded(10, 3);
    assert_eq!(showable(&mut links, &[both]), ["kent", "york"]);
    let more: Totals = &[("kent", 21, 21), ("york", 12, 12)];
    assert_eq!(showable(&mut links, &[more]), [""; 0]);
}

#[test]
fn where_the_operators_view_has_failed_no_place_is_shown() {
    let mut count = Count::new(POLICY);
    count.places = Some(has_declared);
    count.sizes = BTreeMap::from([("Kent", 30), ("York", 30)]);
    count.publish(Duration::ZERO);
    count.failed_view = "of_places";
    count.failed = true;
    for i in 0..60 {
        count.count(if i % 2 == 0 { "Kent" } else { "York" }, if i % 3 == 0 { "a" } else { "b" });
    }
    count.is_quiet();
    assert_eq!(count.released().last(), Some(&60));
    assert!(by_place(count.releases.last().unwrap()).is_empty());
}
