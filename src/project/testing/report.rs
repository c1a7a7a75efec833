//! What `tally test` says: for people as it goes, and as a JUnit report for CI.

use std::io::Write;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::Outcome;
use crate::error::{Error, Result};

/// Tells of one test.
pub fn tell(outcome: &Outcome, out: &mut impl Write) -> Result<()> {
    let Outcome { path, failure, updated, took } = outcome;
    let word = if failure.is_some() { "FAILED" } else { "ok" };
    let note = if *updated { "  (what came out was written)" } else { "" };
    let mut text = format!("{word:<7} {}  {:.2} s{note}\n", path.display(), took.as_secs_f64());
    for line in failure.iter().flat_map(|failure| failure.lines()) {
        text += &format!("        {line}\n");
    }
    write(out, &text)
}

/// Tells of all tests.
pub fn sum_up(outcomes: &[Outcome], out: &mut impl Write) -> Result<()> {
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let tests = if outcomes.len() == 1 { "test" } else { "tests" };
    write(
        out,
        &format!("\n{} {tests}: {} passed, {failed} failed\n", outcomes.len(), outcomes.len() - failed),
    )
}

fn write(out: &mut impl Write, text: &str) -> Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| Error::Io { action: "telling of a test".into(), source })
}

/// The outcomes as a JUnit report: a test case each.
pub fn junit(outcomes: &[Outcome]) -> Result<String> {
    let mut suite = TestSuite::new("tally");
    suite.set_time(outcomes.iter().map(|outcome| outcome.took).sum::<Duration>());
    for Outcome { path, failure, took, .. } in outcomes {
        let status = match failure {
            None => TestCaseStatus::success(),
            Some(failure) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status
                    .set_message(failure.lines().next().unwrap_or_default())
                    .set_description(failure.as_str());
                status
            }
        };
        let mut case = TestCase::new(path.display().to_string(), status);
        case.set_classname("tally").set_time(*took);
        suite.add_test_case(case);
    }
    let mut report = Report::new("tally test");
    report.add_test_suite(suite);
    let failed = |e: quick_junit::SerializeError| Error::Io {
        action: "writing the JUnit report".into(),
        source: std::io::Error::other(e),
    };
    report.to_string().map_err(failed)
}
