//! Turns a panic inside a library's function into an error of the row that caused it: `lpad('', -2)` must not
//! end a count.

use std::any::Any;
use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;

use datafusion::common::exec_datafusion_err;
use datafusion::error::{DataFusionError, Result};

thread_local! {
    /// Whether a panic on this thread is about to be caught, so that nobody needs to be told of it on stderr.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic is an error with the panic's text.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    silence_caught_panics();
    let outer = CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    done.unwrap_or_else(|panic| Err(as_error(panic.as_ref())))
}

/// Awaits `work`; a panic is an error with the panic's text.
pub async fn catch_async<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    poll_fn(|context| match catch(|| Ok(work.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

fn as_error(panic: &(dyn Any + Send)) -> DataFusionError {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    exec_datafusion_err!("a function failed: {}", text.unwrap_or_else(|| "panic".into()))
}

fn silence_caught_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                report(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_text() {
        let error = catch::<()>(|| panic!("capacity {}", 7)).unwrap_err();
        assert!(error.to_string().contains("a function failed: capacity 7"), "{error}");
        let error = catch_async::<()>(async {
            tokio::task::yield_now().await;
            panic!("later")
        });
        assert!(error.await.unwrap_err().to_string().contains("later"));
        assert_eq!(catch(|| Ok(1)).unwrap(), 1);
        assert!(!CAUGHT.get(), "other panics are told");
    }
}
