//! The threads that everything asynchronous runs on.

use std::future::Future;

/// Runs the work to its end on threads of its own; fails if they cannot be had. It is for a process that ends with the work: whatever
/// else still runs is not waited for, and goes on until the process is gone.
///
/// So the runtime is neither dropped nor shut down. A drop waits for every blocking thread: a look-up of a name that nobody answers
/// takes the resolver half a minute. And a task that is being polled when the clock is shut down panics at its next sleep, which would
/// make an orderly end an abort ([`crate::telemetry::abort_on_panic`]).
pub fn to_the_end<F: Future>(work: F) -> Result<F::Output, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start the runtime: {e}"))?;
    let result = runtime.block_on(work);
    std::mem::forget(runtime);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    /// None of these takes long; two busy cores are slow.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn the_end_waits_for_no_thread_that_hangs() {
        let begun = Instant::now();
        let (hangs, hung) = mpsc::channel();
        to_the_end(async move {
            tokio::task::spawn_blocking(move || {
                hangs.send(()).unwrap();
                std::thread::sleep(2 * PATIENCE);
            });
            hung.recv().unwrap();
        })
        .unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_still_runs_at_the_end_may_sleep() {
        let ((begins, begun), (end, ended), (sleeps, slept)) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        to_the_end(async move {
            tokio::spawn(async move {
                tokio::task::block_in_place(|| {
                    begins.send(()).unwrap();
                    ended.recv().unwrap();
                });
                tokio::time::sleep(Duration::from_millis(1)).await;
                sleeps.send(()).unwrap();
            });
            begun.recv().unwrap();
        })
        .unwrap();
        end.send(()).unwrap();
        slept.recv_timeout(PATIENCE).expect("it slept, and did not panic");
    }
}
