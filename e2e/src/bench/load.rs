//! The rows: what etcd's `benchmark` is told to do, and how to read what it says.

use anyhow::{Context, Result, bail};

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// As it stands in the table.
    pub name: &'static str,
    /// For `benchmark`.
    pub arguments: Vec<String>,
    /// How many operations the CPU time is divided by.
    pub operations: u64,
}

/// What one run of a row gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Operations per second. Of several summaries the last: with watches it is the events'.
    pub rate: f64,
    /// The 50th and the 99th of a hundred latencies, in seconds. Of the same summary.
    pub latencies: [f64; 2],
    /// CPU time of all members, in seconds per operation.
    pub cpu: f64,
}

/// Values as long as etcd's own published benchmark has.
const VALUE: &str = "--val-size=256";

/// How many keys the rows with writes choose from.
const KEY_SPACE: &str = "--key-space-size=100000";

fn row(name: &'static str, operations: u64, arguments: &[&str]) -> Row {
    Row { name, operations, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }
}

/// What is written before any row: ten thousand keys for the long ranges, and one for the short ones.
pub fn before() -> Vec<Row> {
    let many = ["--conns=10", "--clients=100", "put", "--sequential-keys", "--total=10000", "--key-space-size=10000"];
    vec![row("ten thousand keys", 10_000, &[&many[..], &["--key-size=16", VALUE]].concat())]
}

/// `keys` keys of 45 bytes (about as long as Kubernetes') with values of 256.
pub fn fill(keys: u64) -> Row {
    let total = [format!("--total={keys}"), format!("--key-space-size={keys}")];
    let put = ["--conns=20", "--clients=200", "put", "--sequential-keys", "--key-size=45", VALUE, &total[0], &total[1]];
    row("fill", keys, &put)
}

/// All rows about speed. Each takes a few seconds on two cores.
pub fn rows() -> Vec<Row> {
    let (ten, hundred) = (["--conns=10", "--clients=100"], ["--conns=100", "--clients=1000"]);
    let put = |total| ["put", VALUE, KEY_SPACE, total];
    let with = |name, operations, clients: &[&str], rest: &[&str]| row(name, operations, &[clients, rest].concat());
    vec![
        with("put, 1 client", 3_000, &[], &put("--total=3000")),
        with("put, 100 clients", 50_000, &ten, &put("--total=50000")),
        with("put, 1000 clients", 60_000, &hundred, &put("--total=60000")),
        with("range of one key, linearizable", 60_000, &ten, &["range", "x", "--total=60000"]),
        with("range of one key, serializable", 60_000, &ten, &["range", "x", "--total=60000", "--consistency=s"]),
        with("txn-put", 40_000, &ten, &["txn-put", VALUE, KEY_SPACE, "--total=40000"]),
        with("txn-mixed", 4_000, &ten, &["txn-mixed", "x", "--limit=100", VALUE, KEY_SPACE, "--total=4000"]),
        with(
            "watch, events",
            2_000_000,
            &ten,
            &["watch", "--streams=100", "--watch-per-stream=10", "--put-total=2000"],
        ),
        with("watch-latency", 2_000, &[], &["watch-latency", "--put-rate=1000", "--put-total=2000"]),
        with("lease-keepalive", 50_000, &ten, &["lease-keepalive", "--total=50000"]),
        with(
            "range of 10,000 keys",
            100,
            &["--conns=4", "--clients=4"],
            &["range", "", "--prefix", "--limit=10000", "--total=100"],
        ),
    ]
}

/// Reads what `benchmark` printed. `cpu` is what the members used per operation.
///
/// # Errors
/// A figure is missing: the run failed, or another version of `benchmark` prints otherwise. Or some of its calls failed: a rate
/// that leaves those out says nothing.
pub fn figures(said: &str, cpu: f64) -> Result<Figures> {
    if let Some((_, errors)) = said.split_once("Error distribution:") {
        bail!(
            "calls failed: {}",
            errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
        );
    }
    let value = |label: &str| {
        let line = said.lines().rev().find_map(|line| line.trim().strip_prefix(label));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse::<f64>().ok()).with_context(|| format!("it says nothing of {label}"))
    };
    Ok(Figures { rate: value("Requests/sec:")?, latencies: [value("50% in")?, value("99% in")?], cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
Watch creation summary:
  Requests/sec:\t15633.5633
  50% in 0.0039 secs.
  99% in 0.0266 secs.

Watch events received summary:

Summary:
  Total:\t0.1264 secs.
  Average:\t0.0118 secs.
  Requests/sec:\t337911.1350

Latency distribution:
  50% in 0.0001 secs.
  99% in 0.1793 secs.
";

    #[test]
    fn the_last_summary_counts() {
        let read = figures(SAID, 0.5).unwrap();
        assert_eq!(read, Figures { rate: 337_911.135, latencies: [0.0001, 0.1793], cpu: 0.5 });
    }

    #[test]
    fn all_digits_are_read_as_benchmark_writes_them() {
        let said = SAID.replace("337911.1350", "1.2345678e+06").replace("0.0001 secs", "8.3917e-05 secs");
        let read = figures(&said, 0.5).unwrap();
        assert_eq!(read, Figures { rate: 1_234_567.8, latencies: [8.3917e-5, 0.1793], cpu: 0.5 });
    }

    #[test]
    fn a_run_that_failed_is_an_error_that_names_what_is_missing() {
        let error = figures("dial tcp: connection refused", 0.0).unwrap_err().to_string();
        assert!(error.contains("Requests/sec:"), "{error}");
        let some = format!("{SAID}\nError distribution:\n  [11]\tetcdserver: request timed out\n");
        let error = figures(&some, 0.0).unwrap_err().to_string();
        assert_eq!(error, "calls failed: [11]\tetcdserver: request timed out");
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = rows().iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows().len());
    }
}
