//! Ends the process at a named step, for tests of what a crash leaves behind: `TALLY_TEST_CRASH=STEP:N` aborts it
//! when it comes to the step for the N-th time. Without that variable a step costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const VARIABLE: &str = "TALLY_TEST_CRASH";

struct Crash {
    step: String,
    left: AtomicU64,
}

/// The engine has come to this step.
pub fn point(step: &str) {
    static CRASH: OnceLock<Option<Crash>> = OnceLock::new();
    let wanted = || {
        let wanted = std::env::var(VARIABLE).ok()?;
        let (step, times) = wanted.split_once(':')?;
        Some(Crash { step: step.into(), left: AtomicU64::new(times.parse().ok()?) })
    };
    let Some(crash) = CRASH.get_or_init(wanted) else { return };
    if crash.step == step && crash.left.fetch_sub(1, Relaxed) == 1 {
        tracing::error!("{VARIABLE}: ending at {step}");
        std::process::abort();
    }
}
