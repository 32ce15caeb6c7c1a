//! The kinds of values that flags take, read as Go's flag package and etcd's own types read them, with their error
//! texts.

use crate::flags::url::{Url, parse_list};
use std::time::Duration;

/// A value that a flag can have.
pub trait Value: Default {
    /// Its kind, which decides how it is written on a command line and in a configuration file.
    const KIND: Kind;

    /// Takes the text after `--flag=`. The error is Go's, which the caller puts behind the flag's name.
    fn set(&mut self, text: &str) -> Result<(), String>;

    /// A value from its text alone.
    fn read(text: &str) -> Result<Self, String> {
        let mut value = Self::default();
        value.set(text)?;
        Ok(value)
    }
}

/// The kinds, by their type in etcd's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `string`.
    Text,
    /// `bool`: on the command line it needs no value.
    Bool,
    /// A number, by Go's name of its type.
    Number(&'static str),
    /// `time.Duration`: `1h30m` on the command line, nanoseconds in a file.
    Duration,
    /// A list, separated by commas on the command line and `[]string` in a file.
    List,
    /// A list, separated by commas on the command line and in a file.
    Joined,
}

impl Value for String {
    const KIND: Kind = Kind::Text;
    fn set(&mut self, text: &str) -> Result<(), String> {
        text.clone_into(self);
        Ok(())
    }
}

impl Value for bool {
    const KIND: Kind = Kind::Bool;
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => return Err("parse error".to_owned()),
        };
        Ok(())
    }
}

/// Go's `ParseInt` with base 0: a sign, a prefix for the base, digits that underscores may separate.
fn go_int(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some(two) if two.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) || digits.ends_with('_') {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// Numbers: `usize` stands for Go's `uint`, `isize` for its `int`.
macro_rules! number {
    ($($kind:ty = $go:literal;)*) => { $(
        impl Value for $kind {
            const KIND: Kind = Kind::Number($go);
            fn set(&mut self, text: &str) -> Result<(), String> {
                let value = go_int(text).ok_or("parse error")?;
                if value < 0 && <$kind>::MIN == 0 {
                    return Err("parse error".to_owned());
                }
                *self = <$kind>::try_from(value).map_err(|_| "value out of range")?;
                Ok(())
            }
        }
    )* };
}

number! {
    usize = "uint";
    isize = "int";
    u64 = "uint64";
    i64 = "int64";
}

/// etcd reads this one with a type of its own, and so its errors differ.
impl Value for u32 {
    const KIND: Kind = Kind::Number("uint32");
    fn set(&mut self, text: &str) -> Result<(), String> {
        let bad = |why: &str| format!("strconv.ParseUint: parsing {text:?}: {why}");
        let value = go_int(text).filter(|_| !text.starts_with(['+', '-'])).ok_or_else(|| bad("invalid syntax"))?;
        *self = u32::try_from(value).map_err(|_| bad("value out of range"))?;
        Ok(())
    }
}

/// Go's `time.Duration`, in nanoseconds; it may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    /// As a length of time; nothing for a negative one.
    pub fn length(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl Value for GoDuration {
    const KIND: Kind = Kind::Duration;
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = go_duration(text).ok_or("parse error")?;
        Ok(())
    }
}

/// Go's durations: a sign, then numbers with units: `1h30m`, `1.5s`, `100ms`, or a bare `0`.
pub fn go_duration(text: &str) -> Option<GoDuration> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Some(GoDuration(0));
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let scale = match unit {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" | "μs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        nanos += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (nanos < i64::MAX as f64).then_some(GoDuration((sign * nanos) as i64))
}

/// A list without empty entries, in the order in which it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl Value for List {
    const KIND: Kind = Kind::List;
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0 = text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        Ok(())
    }
}

/// Hosts that may be named in a request's `Host`, or `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(pub Vec<String>);

impl Value for Hosts {
    const KIND: Kind = Kind::Joined;
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0 = text.split(',').map(str::to_owned).collect();
        Ok(())
    }
}

/// A list of URLs. An empty text leaves what was there, as etcd's type does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls(pub Vec<Url>);

impl Value for Urls {
    const KIND: Kind = Kind::Joined;
    fn set(&mut self, text: &str) -> Result<(), String> {
        if !text.is_empty() {
            self.0 = parse_list(text)?;
        }
        Ok(())
    }
}

impl Urls {
    /// Each as text.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(Url::to_string).collect()
    }
}

/// Origins that may read answers in a browser: URLs, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(pub Vec<String>);

impl Value for Origins {
    const KIND: Kind = Kind::Joined;
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0 = match text {
            "*" | "" => vec!["*".to_owned()],
            _ => parse_list(text)?.iter().map(Url::to_string).collect(),
        };
        Ok(())
    }
}

/// One of a few words.
macro_rules! choice {
    ($(#[doc = $doc:literal] $name:ident: $($word:literal),+;)*) => { $(
        #[doc = $doc]
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub String);
        impl Value for $name {
            const KIND: Kind = Kind::Text;
            fn set(&mut self, text: &str) -> Result<(), String> {
                if ![$($word),+].contains(&text) {
                    return Err("invalid value".to_owned());
                }
                self.0 = text.to_owned();
                Ok(())
            }
        }
    )* };
}

choice! {
    /// Whether the cluster is new.
    InitialState: "new", "existing";
    /// What a failed discovery leads to; the proxy is gone, and named only to refuse it.
    Fallback: "exit", "proxy";
}

/// A stage of leaving etcd's second API, which this server never had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct V2Stage(pub String);

impl Value for V2Stage {
    const KIND: Kind = Kind::Text;
    fn set(&mut self, text: &str) -> Result<(), String> {
        const STAGES: [&str; 5] = ["", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"];
        if let Some(unknown) = text.split(',').find(|stage| !STAGES.contains(stage)) {
            return Err(format!("invalid value {unknown:?}"));
        }
        text.clone_into(&mut self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let ms = |n: i64| Some(GoDuration(n * 1_000_000));
        assert_eq!(go_duration("1.5s"), ms(1500));
        assert_eq!(go_duration("1h30m"), ms(5_400_000));
        assert_eq!(go_duration("-5ms"), ms(-5));
        assert_eq!(go_duration("0"), ms(0));
        for bad in ["5", "", "-", "3 weeks", "1.2.3s", "9999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_are_gos() {
        assert_eq!(usize::read("0x10"), Ok(16));
        assert_eq!(usize::read("1_000"), Ok(1000));
        assert_eq!(usize::read("010"), Ok(8));
        assert_eq!(usize::read("0"), Ok(0));
        assert_eq!(i64::read("-1"), Ok(-1));
        assert_eq!(usize::read("-1"), Err("parse error".into()));
        assert_eq!(i64::read("9223372036854775808"), Err("value out of range".into()));
        assert_eq!(u32::read("-1"), Err("strconv.ParseUint: parsing \"-1\": invalid syntax".into()));
        assert_eq!(
            u32::read("4294967296"),
            Err("strconv.ParseUint: parsing \"4294967296\": value out of range".into())
        );
    }
}
