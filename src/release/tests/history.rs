//! What is kept of earlier releases.

use super::*;

#[test]
fn a_history_has_the_releases_in_which_a_view_changed_and_gets_coarser() {
    let mut history = History::default();
    let mut add = |release: u64, n: i64| {
        let rows =
            RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![n])) as ArrayRef)]).unwrap();
        let disclosure = Disclosure { history: Some(4), ..Disclosure::default() };
        let with = of("with", rows.clone(), Vec::new(), disclosure, release);
        let without = of("without", rows, Vec::new(), Disclosure::default(), release);
        let views = BTreeMap::from([("with".into(), with), ("without".into(), without)]);
        history.add(release, SystemTime::UNIX_EPOCH + Duration::from_secs(release), &views).unwrap();
        let past = history.of("with").unwrap();
        assert!(history.of("without").is_none());
        past.iter().map(|past| past.release).collect::<Vec<_>>()
    };
    assert_eq!(add(1, 0), [1]);
    assert_eq!(add(2, 0), [1], "nothing has changed");
    assert_eq!(add(3, 1), [1, 3]);
    assert_eq!(add(4, 2), [1, 3, 4]);
    assert_eq!(add(5, 3), [1, 3, 4, 5]);
    assert_eq!(add(6, 4), [1, 4, 6]);
    assert_eq!(add(7, 5), [1, 4, 6, 7]);
    assert_eq!(add(8, 6), [1, 6, 8], "the first and the newest stay");
}
