//! An outage of a server: since when and why nothing goes in or out. It is told in the status, and in the log
//! once and then once a minute, never by an error that would end the work.

use std::time::{Duration, Instant, SystemTime};

/// How often an outage that lasts is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why nothing can be received or sent at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it began.
    pub since: SystemTime,
    /// What is wrong and, where somebody can do something about it, what.
    pub reason: String,
    /// Whether the work goes on by itself once the reason is gone. If not, a restart is needed, and the
    /// reason says so.
    pub ends_by_itself: bool,
}

/// Notes when an outage begins, changes its reason and ends, and logs it.
pub(crate) struct OutageLog {
    /// What can't be done meanwhile, for the log: `reading topic votes_topic`.
    action: String,
    current: Option<(Outage, Instant)>,
}

impl OutageLog {
    pub(crate) fn new(action: impl Into<String>) -> Self {
        OutageLog { action: action.into(), current: None }
    }

    /// There is an outage for this reason.
    pub(crate) fn on(&mut self, reason: impl Into<String>, ends_by_itself: bool) {
        let reason = reason.into();
        match &mut self.current {
            Some((outage, logged)) => {
                // A client words the same failure in several ways: only a change of what is to be done is news.
                let news = outage.ends_by_itself != ends_by_itself;
                outage.reason = reason;
                outage.ends_by_itself = ends_by_itself;
                if news || logged.elapsed() >= LOG_INTERVAL {
                    *logged = Instant::now();
                    tracing::warn!("{} is paused: {}", self.action, outage.reason);
                }
            }
            None => {
                tracing::warn!("{} is paused: {reason}", self.action);
                let outage = Outage { since: SystemTime::now(), reason, ends_by_itself };
                self.current = Some((outage, Instant::now()));
            }
        }
    }

    /// There is no outage, or no longer.
    pub(crate) fn off(&mut self) {
        if let Some((outage, _)) = self.current.take() {
            let seconds = outage.since.elapsed().unwrap_or_default().as_secs_f64();
            tracing::info!("{} goes on after {seconds:.1} s", self.action);
        }
    }

    /// The outage there is.
    pub(crate) fn current(&self) -> Option<Outage> {
        self.current.as_ref().map(|(outage, _)| outage.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_keeps_its_beginning_while_its_reason_changes() {
        let mut log = OutageLog::new("reading");
        assert_eq!(log.current(), None);
        log.on("no answer", true);
        let first = log.current().unwrap();
        log.on("connection refused", true);
        let second = log.current().unwrap();
        assert_eq!((second.since, second.reason.as_str()), (first.since, "connection refused"));
        log.off();
        assert_eq!(log.current(), None);
    }
}
