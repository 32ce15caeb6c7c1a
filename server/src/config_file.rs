//! `--config-file`: etcd's YAML or JSON file. The only module that names the YAML reader.
//!
//! Keys are flag names, except that certificates stand in two maps of their own, and socket options and discovery
//! in another each. Durations are nanoseconds. A key that nobody knows is ignored, as in etcd, with a remark.

use crate::cli::{Notice, Settings};
use crate::flags::{self, Spec, value::Kind};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_yaml::{Mapping, Value};

/// Keys that etcd has beside the flags, or reads into a struct of its own (which its errors name).
const JOINED: [&str; 8] = [
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "cors",
    "host-whitelist",
    "feature-gates",
];

/// Flags that cannot be set in a file: they have no key, or one inside a map.
fn has_key(name: &str) -> bool {
    const NONE: [&str; 24] = [
        "cert-file",
        "key-file",
        "client-cert-file",
        "client-key-file",
        "client-cert-auth",
        "trusted-ca-file",
        "auto-tls",
        "client-crl-file",
        "client-cert-allowed-hostname",
        "peer-cert-file",
        "peer-key-file",
        "peer-client-cert-file",
        "peer-client-key-file",
        "peer-client-cert-auth",
        "peer-trusted-ca-file",
        "peer-auto-tls",
        "peer-cert-allowed-cn",
        "peer-cert-allowed-hostname",
        "peer-skip-client-san-verification",
        "raft-read-timeout",
        "raft-write-timeout",
        "socket-reuse-port",
        "socket-reuse-address",
        "discovery-fallback",
    ];
    !NONE.contains(&name) && (!name.starts_with("discovery-") || name.starts_with("discovery-srv"))
}

/// The keys of the two maps of certificates, with the flags that they are for clients and for members. etcd takes
/// allowed names for both, and has no key for a revocation list; ours is `crl-file`.
const SECURITY: [(&str, &str, &str); 11] = [
    ("cert-file", "cert-file", "peer-cert-file"),
    ("key-file", "key-file", "peer-key-file"),
    ("client-cert-file", "client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "auto-tls", "peer-auto-tls"),
    ("allowed-cn", "client-cert-allowed-cn", "peer-cert-allowed-cn"),
    ("allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    ("skip-client-san-verification", "", "peer-skip-client-san-verification"),
    ("crl-file", "client-crl-file", "peer-crl-file"),
];

/// Reads the file's text into the settings. Errors are etcd's, which are those of Go's JSON reader.
pub fn read(text: &str, settings: &mut Settings) -> Result<(), String> {
    let value = parsed(text, settings).map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))?;
    let map = match value {
        Value::Mapping(map) => map,
        Value::Null => return Ok(()),
        other => return Err(mismatch(&other, None)),
    };
    for (key, value) in &map {
        let Value::String(key) = key else {
            settings.notices.push(unknown(&format!("{key:?}")));
            continue;
        };
        // Go finds a key whatever the case of its letters.
        match key.to_lowercase().as_str() {
            "client-transport-security" => security(key, value, settings, |row| row.1)?,
            "peer-transport-security" => security(key, value, settings, |row| row.2)?,
            "socket-options" => {
                for (key, value) in section(key, value, "transport.SocketOpts")? {
                    let name = match key.as_str() {
                        Some("reuse-port") => "socket-reuse-port",
                        Some("reuse-address") => "socket-reuse-address",
                        _ => continue,
                    };
                    set(name, "SocketOpts.Config.socket-options", key.as_str().unwrap_or_default(), value, settings)?;
                }
            }
            "discovery-config" => {
                if section(key, value, "v3discovery.DiscoveryConfig")?.contains_key("token") {
                    return Err("discovery-config is not supported: name the members in initial-cluster".to_owned());
                }
            }
            name => match flags::find(name).filter(|_| has_key(name)) {
                Some(_) => {
                    let place = if JOINED.contains(&name) { "configYAML.configJSON" } else { "configYAML.Config" };
                    set(name, place, name, value, settings)?;
                }
                None => settings.notices.push(unknown(name)),
            },
        }
    }
    Ok(())
}

/// The first document, as etcd's reader takes it. Of a key that stands twice at the top, as when a line was
/// appended, the last one counts.
fn parsed(text: &str, settings: &mut Settings) -> Result<Value, serde_yaml::Error> {
    let first = || serde_yaml::Deserializer::from_str(text).next();
    let Some(document) = first() else { return Ok(Value::Null) };
    let strict = match Value::deserialize(document) {
        Ok(value) => return Ok(value),
        Err(e) => e,
    };
    let again = first().and_then(|document| LastCounts::deserialize(document).ok()).ok_or(strict)?;
    for key in again.twice {
        settings.notices.push(Notice::Other(format!("the configuration file has {key} twice: the last one counts")));
    }
    Ok(Value::Mapping(again.map))
}

/// A map in which keys may stand several times.
#[derive(Default)]
struct LastCounts {
    map: Mapping,
    twice: Vec<String>,
}

impl<'de> Deserialize<'de> for LastCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = LastCounts;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<LastCounts, A::Error> {
                let mut found = LastCounts::default();
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if found.map.insert(Value::String(key.clone()), value).is_some() {
                        found.twice.push(key);
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn unknown(key: &str) -> Notice {
    Notice::Other(format!("the configuration file has an unknown key, which is ignored: {key}"))
}

fn section<'v>(key: &str, value: &'v Value, kind: &str) -> Result<&'v Mapping, String> {
    static EMPTY: std::sync::LazyLock<Mapping> = std::sync::LazyLock::new(Mapping::new);
    match value {
        Value::Mapping(map) => Ok(map),
        Value::Null => Ok(&EMPTY),
        other => {
            let place = if kind.starts_with("embed") { "configYAML.configJSON" } else { "configYAML.Config" };
            Err(mismatch(other, Some((&format!("{place}.{key}"), kind))))
        }
    }
}

fn security(
    key: &str,
    value: &Value,
    settings: &mut Settings,
    flag: fn(&(&'static str, &'static str, &'static str)) -> &'static str,
) -> Result<(), String> {
    for (inner, value) in section(key, value, "embed.securityConfig")? {
        let inner = &inner.as_str().unwrap_or_default().to_lowercase();
        let row = SECURITY.iter().find(|row| row.0 == inner);
        match row.map(flag).filter(|name| flags::find(name).is_some()) {
            Some(name) => set(name, &format!("securityConfig.configJSON.{key}"), inner, value, settings)?,
            None => settings.notices.push(unknown(&format!("{key}.{inner}"))),
        }
    }
    Ok(())
}

/// Sets one flag from a value of the right kind.
fn set(name: &str, place: &str, key: &str, value: &Value, settings: &mut Settings) -> Result<(), String> {
    let Some(spec) = flags::find(name) else { return Ok(()) };
    if value.is_null() {
        return Ok(());
    }
    let wrong = || mismatch(value, Some((&format!("{place}.{key}"), type_name(spec))));
    let text = match (spec.kind, value) {
        (Kind::Text | Kind::Joined, Value::String(text)) => text.clone(),
        (Kind::Bool, Value::Bool(on)) => on.to_string(),
        (Kind::Bool, Value::String(word)) => older_bool(word).ok_or_else(wrong)?.to_string(),
        (Kind::Number(_), Value::Number(number)) => match number.as_f64() {
            // `8e9`
            Some(whole) if number.is_f64() && whole.fract() == 0.0 && whole.abs() < 2f64.powi(53) => {
                (whole as i64).to_string()
            }
            _ => number.to_string(),
        },
        (Kind::Number(_), Value::String(digits)) if digits.bytes().all(|b| b.is_ascii_digit() || b == b'_') => {
            digits.replace('_', "")
        }
        (Kind::Duration, Value::Number(nanos)) => nanos.as_i64().map(|n| format!("{n}ns")).ok_or_else(wrong)?,
        (Kind::List, Value::Sequence(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.ok_or_else(wrong)?.join(",")
        }
        _ => return Err(wrong()),
    };
    settings.flags.set(spec, &text).map_err(|why| match (spec.kind, name) {
        (Kind::Number(_), _) => wrong(),
        (_, "feature-gates") => why,
        (_, "initial-cluster-state") => format!("unexpected clusterState {text:?}"),
        _ => format!("unexpected error setting up {name}: {why}"),
    })?;
    settings.given.insert(name.to_owned());
    Ok(())
}

/// The words of YAML 1.1, which etcd's reader takes.
fn older_bool(word: &str) -> Option<bool> {
    match word.to_lowercase().as_str() {
        "y" | "yes" | "on" => Some(true),
        "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn type_name(spec: &Spec) -> &'static str {
    match spec.kind {
        Kind::Text | Kind::Joined => "string",
        Kind::Bool => "bool",
        Kind::Number(name) => name,
        Kind::Duration => "time.Duration",
        Kind::List => "[]string",
    }
}

/// Go's complaint about a value of the wrong kind; a number of the wrong size is named.
fn mismatch(value: &Value, field: Option<(&str, &str)>) -> String {
    let number_for_number = |kind: &str| kind.contains("int") || kind == "time.Duration";
    let what = match value {
        Value::Number(n) if field.is_some_and(|(_, kind)| number_for_number(kind)) => format!("number {n}"),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Sequence(_) => "array".to_owned(),
        _ => "object".to_owned(),
    };
    let into = match field {
        Some((path, kind)) => format!("Go struct field {path} of type {kind}"),
        None => "Go value of type embed.configYAML".to_owned(),
    };
    format!("error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what} into {into}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;
    use std::collections::BTreeSet;

    fn settings(text: &str) -> Result<Settings, String> {
        let mut settings =
            Settings { flags: Flags::default(), given: BTreeSet::new(), file: None, notices: Vec::new() };
        read(text, &mut settings)?;
        Ok(settings)
    }

    #[test]
    fn yaml_and_json_with_etcds_keys() {
        let yaml = "name: m1\nlisten-client-urls: http://127.0.0.1:1,https://127.0.0.1:1\nheartbeat-interval: 50\n\
                    watch-progress-notify-interval: 5000000000\npre-vote: false\nlog-outputs: [stderr]\n\
                    auto-compaction-retention: \"5\"\nfeature-gates: InitialCorruptCheck=true\n\
                    client-transport-security:\n  cert-file: c\n  client-cert-auth: true\n\
                    peer-transport-security:\n  allowed-cn: [a, b]\n  auto-tls: true\nsocket-options:\n  reuse-port: true\n";
        let f = settings(yaml).unwrap().flags;
        assert_eq!((f.name.as_str(), f.heartbeat_interval, f.pre_vote), ("m1", 50, false));
        assert_eq!(f.listen_client_urls.0.len(), 2);
        assert_eq!(f.watch_progress_notify_interval.length().as_secs(), 5);
        assert!(f.cert_file == "c" && f.client_cert_auth && !f.peer_client_cert_auth);
        assert!(f.peer_auto_tls && f.socket_reuse_port && f.feature_gates.enabled("InitialCorruptCheck"));
        assert_eq!(f.peer_cert_allowed_cn.0, ["a", "b"]);
        assert_eq!(settings("{\"name\": \"j\"}").unwrap().flags.name, "j");
        assert_eq!(settings("").unwrap().flags.name, "default");
    }

    /// etcd's reader is one of YAML 1.1, and Go's JSON reader behind it: files that it took are there.
    #[test]
    fn what_etcds_older_reader_takes_is_taken() {
        let yaml = "Name: m1\nquota-backend-bytes: 1\nstrict-reconfig-check: off\npre-vote: No\nsnapshot-count: 10_000\n\
                    quota-backend-bytes: 8e9\nClient-Transport-Security:\n  Client-Cert-Auth: yes\n---\nname: other\n";
        let s = settings(yaml).unwrap();
        let f = s.flags;
        assert_eq!((f.name.as_str(), f.quota_backend_bytes, f.snapshot_count), ("m1", 8_000_000_000, 10_000));
        assert!(!f.strict_reconfig_check && !f.pre_vote && f.client_cert_auth);
        let [Notice::Other(twice)] = &s.notices[..] else { panic!("{:?}", s.notices) };
        assert!(twice.contains("quota-backend-bytes twice"), "{twice}");
        assert!(settings("pre-vote: maybe").is_err() && settings("snapshot-count: 1.5").is_err());
    }

    #[test]
    fn keys_that_nobody_knows_are_mentioned() {
        let s = settings("nope: 1\ncert-file: x\nname:\n").unwrap();
        assert_eq!(s.notices.len(), 2);
        assert!(s.flags.cert_file.is_empty() && s.flags.name == "default");
    }

    #[test]
    fn bad_values_are_refused_in_etcds_words() {
        let json = |rest: &str| format!("error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {rest}");
        let field =
            |what: &str, path: &str, kind: &str| json(&format!("{what} into Go struct field {path} of type {kind}"));
        for (text, error) in [
            ("heartbeat-interval: 100ms", field("string", "configYAML.Config.heartbeat-interval", "uint")),
            (
                "watch-progress-notify-interval: 5s",
                field("string", "configYAML.Config.watch-progress-notify-interval", "time.Duration"),
            ),
            ("pre-vote: \"true\"", field("string", "configYAML.Config.pre-vote", "bool")),
            ("name: 5", field("number", "configYAML.Config.name", "string")),
            ("name: [a]", field("array", "configYAML.Config.name", "string")),
            ("cipher-suites: foo", field("string", "configYAML.Config.cipher-suites", "[]string")),
            ("max-concurrent-streams: -1", field("number -1", "configYAML.Config.max-concurrent-streams", "uint32")),
            ("quota-backend-bytes: 1.5", field("number 1.5", "configYAML.Config.quota-backend-bytes", "int64")),
            (
                "peer-transport-security: x",
                field("string", "configYAML.configJSON.peer-transport-security", "embed.securityConfig"),
            ),
            (
                "client-transport-security:\n  allowed-hostname: a",
                field("string", "securityConfig.configJSON.client-transport-security.allowed-hostname", "[]string"),
            ),
            ("[]", json("array into Go value of type embed.configYAML")),
            ("feature-gates: Foo=true", "unrecognized feature gate: Foo".to_owned()),
            ("initial-cluster-state: old", "unexpected clusterState \"old\"".to_owned()),
            (
                "listen-client-urls: foo",
                "unexpected error setting up listen-client-urls: URL scheme must be http, https, unix, or unixs: foo"
                    .to_owned(),
            ),
        ] {
            assert_eq!(settings(text).unwrap_err(), error, "{text}");
        }
        assert!(settings("a: b: c").unwrap_err().starts_with("error converting YAML to JSON: yaml: "));
    }

    #[test]
    fn fuzz_config_file() {
        let seeds = [
            "name: a\nlisten-client-urls: http://127.0.0.1:1\nheartbeat-interval: 100\nquota-backend-bytes: 1e9\n",
            r#"{"client-transport-security":{"cert-file":"c","client-cert-auth":true},"feature-gates":"A=true"}"#,
            "a: &x [*x]\nb: !!binary aaaa\n? - b\n: c\n--- \n",
            "socket-options: {reuse-port: true}\nlog-outputs: [a, b]\ngrpc-keepalive-min-time: 5000000000\n",
        ];
        let names: Vec<String> = crate::flags::SPECS.iter().map(|spec| format!("\n{}: ", spec.name())).collect();
        let mut words: Vec<&str> = names.iter().map(String::as_str).collect();
        words.extend(["&a ", "*a", "!!int ", "<<: ", "[", "]", "{", "}", "~", ".inf", "0x1", "- ", "|\n", "\n---\n"]);
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "config_file").seeds(seeds).words(&words).run(|bytes| {
            let (flags, given, file, notices) = Default::default();
            let mut settings = Settings { flags, given, file, notices };
            match read(&String::from_utf8_lossy(bytes), &mut settings) {
                Ok(()) => settings.flags.changed().map(|spec| spec.name()).collect::<Vec<_>>().join(","),
                Err(e) => e,
            }
        });
    }
}
