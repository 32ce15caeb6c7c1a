//! Waiting for something to become true: bounded, with progress on the way and the last state in the error.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::progress::say;

/// How often the probe is asked. One `kubectl get` costs about 0.1 s of CPU, so more often would slow what is waited for.
const INTERVAL: Duration = Duration::from_millis(400);

/// How often a wait says what it still waits for.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe<T> {
    /// It has become true; the wait ends with this value.
    Ready(T),
    /// Not yet; the text says what was seen, and ends up in the error if time runs out.
    Pending(String),
    /// It never will; the wait ends with this text as its error.
    Failed(String),
}

impl Probe<()> {
    /// `Ready` if `condition` holds, else `Pending` with what `seen` says.
    pub fn when(condition: bool, seen: impl Into<String>) -> Self {
        if condition { Self::Ready(()) } else { Self::Pending(seen.into()) }
    }
}

/// Asks `probe` until it is ready, at most `timeout` long. An error of the probe counts as "not yet" (an object that does
/// not exist yet makes kubectl fail); [`Probe::Failed`] ends the wait at once. The error names `what` and the last state.
pub fn wait_until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<Probe<T>>) -> Result<T> {
    let began = Instant::now();
    let mut said = began;
    loop {
        let seen = match probe() {
            Ok(Probe::Ready(value)) => return Ok(value),
            Ok(Probe::Pending(seen)) => seen,
            Ok(Probe::Failed(why)) => bail!("{what}: {why}"),
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() >= timeout {
            bail!("{what}: not within {} s; last seen: {seen}", timeout.as_secs());
        }
        if said.elapsed() >= HEARTBEAT {
            let last_line = seen.lines().last().unwrap_or_default();
            say(format!("waiting for {what} ({} s of {}): {last_line}", began.elapsed().as_secs(), timeout.as_secs()));
            said = Instant::now();
        }
        std::thread::sleep(INTERVAL.min(timeout));
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn it_asks_until_ready() {
        let mut asked = 0;
        let value = wait_until("three", Duration::from_secs(60), || {
            asked += 1;
            match asked {
                1 => Err(anyhow!("not found")),
                2 => Ok(Probe::Pending("two".into())),
                _ => Ok(Probe::Ready(asked)),
            }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn out_of_time_it_tells_the_last_state() {
        let error =
            wait_until("the pod", Duration::ZERO, || Ok(Probe::<()>::Pending("phase Pending".into()))).unwrap_err();
        assert_eq!(error.to_string(), "the pod: not within 0 s; last seen: phase Pending");
    }

    #[test]
    fn a_failure_ends_the_wait_at_once() {
        let error =
            wait_until("etcd", Duration::from_secs(60), || Ok(Probe::<()>::Failed("it exited".into()))).unwrap_err();
        assert_eq!(error.to_string(), "etcd: it exited");
    }
}
