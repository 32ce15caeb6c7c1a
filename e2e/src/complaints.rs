//! The warnings and errors in kube-apiserver's log, by class: what differs between two runs of the same story (numbers,
//! addresses, names) is masked, so that the complaints on one datastore can be compared with those on another.

use std::collections::BTreeMap;

use serde_json::Value;

/// How often each class came, by the class's text.
pub type Complaints = BTreeMap<String, u64>;

/// The classes in a log of kube-apiserver: klog's lines of level W, E and F, and the JSON lines of its etcd client that are
/// not `info` or `debug`. Lines of other forms (stack traces) belong to a line before them.
pub fn of_log(log: &str) -> Complaints {
    let mut complaints = Complaints::new();
    for class in log.lines().filter_map(of_line) {
        *complaints.entry(class).or_default() += 1;
    }
    complaints
}

fn of_line(line: &str) -> Option<String> {
    if let Some(entry) = line.starts_with('{').then(|| serde_json::from_str::<Value>(line).ok()).flatten() {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        if matches!(text("level"), "info" | "debug") {
            return None;
        }
        // Not the method: which request is under way when something breaks is chance.
        return Some(mask(&[text("level"), text("logger"), text("msg"), text("error")].join(" | ")));
    }
    // E1121 11:27:05.123456   12345 file.go:123] text
    let level = line.get(..1).filter(|level| ["W", "E", "F"].contains(level))?;
    if !line.get(1..5)?.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (head, text) = line.split_once("] ")?;
    let file = head.split_whitespace().last()?.split_once(':')?.0;
    Some(format!("{level} {file} | {}", mask(text)))
}

/// What the kernel and Go say when the other side of a connection goes away. Which of them is a matter of microseconds.
const BROKEN: [&str; 8] = [
    "EOF",
    "connect: connection refused",
    "connection reset by peer",
    "broken pipe",
    "use of closed network connection",
    "operation was canceled",
    "context canceled",
    "context deadline exceeded",
];

/// The words before which an error of a connection begins, in gRPC's texts for one that breaks and for one that is not made.
const BREAKS: [&str; 2] = ["desc = error reading from server: ", "connection error: desc = "];

/// The words before the name of one of kube-apiserver's caches.
const CACHER: &str = "Terminating all watchers from cacher ";

/// The text with every word that holds a digit, and so may be another in the next run, replaced by `N`. What follows in
/// quotes or parentheses stays, so that two errors of one place remain two classes.
pub fn mask(text: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    let flush = |word: &mut String, masked: &mut String| {
        if word.bytes().any(|byte| byte.is_ascii_digit()) {
            masked.push('N');
        } else {
            masked.push_str(word);
        }
        word.clear();
    };
    for char in text.trim_end().chars() {
        if char.is_ascii_alphanumeric() || "-_.:%".contains(char) {
            word.push(char);
        } else {
            flush(&mut word, &mut masked);
            masked.push(char);
        }
    }
    flush(&mut word, &mut masked);
    // Whose watches end when a cache lists anew is chance, and not all resources have a digit in their names.
    if let Some((what, _)) = masked.split_once(CACHER) {
        return format!("{what}{CACHER}N");
    }
    let broken = BREAKS.iter().find_map(|start| Some(masked.find(start)? + start.len()));
    match broken.and_then(|at| masked.split_at_checked(at)) {
        Some((what, why)) if BROKEN.iter().any(|broken| why.contains(broken)) => {
            format!("{what}<the connection broke>")
        }
        _ => masked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_give_one_class_and_two_errors_give_two() {
        let log = r#"
I1121 11:27:05.123456   12345 server.go:1] fine
E1121 11:27:05.123456   12345 watcher.go:342] watch chan error: etcdserver: no leader
E1121 11:28:06.654321   54321 watcher.go:342] watch chan error: etcdserver: no leader
E1121 11:28:06.654321   54321 watcher.go:342] watch chan error: rpc error: code = Unavailable
W1121 11:28:06.654321   54321 logging.go:55] [core] [Channel #12 SubChannel #13]grpc: dial tcp 127.1.2.3:2379: refused
goroutine 1 [running]:
{"level":"warn","ts":"2026-11-21T11:00:00Z","logger":"etcd-client","msg":"retrying","target":"etcd-endpoints://0xc0/127.0.0.1:2379","error":"rpc error: code = Unknown desc = x 7"}
{"level":"info","msg":"fine"}
"#;
        let classes: Vec<_> = of_log(log).into_iter().collect();
        assert_eq!(
            classes,
            [
                ("E watcher.go | watch chan error: etcdserver: no leader".to_owned(), 2),
                ("E watcher.go | watch chan error: rpc error: code = Unavailable".to_owned(), 1),
                ("W logging.go | [core] [Channel #N SubChannel #N]grpc: dial tcp N refused".to_owned(), 1),
                ("warn | etcd-client | retrying | rpc error: code = Unknown desc = x N".to_owned(), 1),
            ]
        );
    }

    #[test]
    fn names_and_pointers_are_masked() {
        let ended = ["resourcequotas", "events.events.k8s.io"].map(|of| mask(&format!("{CACHER}{of}")));
        assert_eq!(ended, [format!("{CACHER}N"), format!("{CACHER}N")]);
        assert_eq!(
            mask("desc = error reading from server: EOF"),
            "desc = error reading from server: <the connection broke>"
        );
        let refused = "Err: connection error: desc = \"transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused\"";
        assert_eq!(mask(refused), "Err: connection error: desc = <the connection broke>");
        let certificate =
            "connection error: desc = \"transport: authentication handshake failed: tls: bad certificate\"";
        assert_eq!(mask(certificate), certificate);
        assert_eq!(
            mask("key /registry/configmaps/load/o-12 at 0xc0ffee, 7ms"),
            "key /registry/configmaps/load/N at N, N"
        );
    }
}
