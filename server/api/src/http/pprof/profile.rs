//! A profile as `go tool pprof` reads it: stacks of names with values.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ferretcd_proto::pprof::{self, Function, Line, Location, Sample, ValueType};
use prost::Message;

/// What the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ticks of the clock, and nanoseconds, of CPU time.
    Cpu,
    /// How many there are of something.
    Count(&'static str),
}

/// A profile in the making.
#[derive(Debug)]
pub struct Profile {
    profile: pprof::Profile,
    texts: BTreeMap<String, i64>,
    /// Functions, and the locations of the same numbers, by name.
    functions: BTreeMap<String, u64>,
}

impl Profile {
    /// An empty one, over a time that ends now.
    pub fn new(kind: Kind, length: Duration) -> Self {
        let mut new =
            Profile { profile: pprof::Profile::default(), texts: BTreeMap::new(), functions: BTreeMap::new() };
        new.text("");
        let cpu = ("cpu", "nanoseconds");
        let types = match kind {
            Kind::Cpu => vec![("samples", "count"), cpu],
            Kind::Count(what) => vec![(what, "count")],
        };
        let period = types[types.len() - 1];
        new.profile.sample_type = types.into_iter().map(|t| new.value_type(t)).collect();
        new.profile.period_type = Some(new.value_type(period));
        new.profile.period = if kind == Kind::Cpu { super::threads::tick_nanos() } else { 1 };
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        new.profile.time_nanos = nanos(now.saturating_sub(length));
        new.profile.duration_nanos = nanos(length);
        new
    }

    /// Adds a stack, the innermost name first.
    pub fn add(&mut self, stack: &[String], values: &[i64]) {
        let location_id = stack.iter().map(|name| self.location(name)).collect();
        self.profile.sample.push(Sample { location_id, value: values.to_vec() });
    }

    /// The file, before it is packed.
    pub fn encode(&self) -> Vec<u8> {
        self.profile.encode_to_vec()
    }

    fn value_type(&mut self, (kind, unit): (&str, &str)) -> ValueType {
        ValueType { r#type: self.text(kind), unit: self.text(unit) }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(at) = self.texts.get(text) {
            return *at;
        }
        let at = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), at);
        at
    }

    fn location(&mut self, name: &str) -> u64 {
        if let Some(id) = self.functions.get(name) {
            return *id;
        }
        let (id, text) = (self.functions.len() as u64 + 1, self.text(name));
        self.functions.insert(name.to_owned(), id);
        self.profile.function.push(Function { id, name: text, system_name: text });
        self.profile.location.push(Location { id, line: vec![Line { function_id: id }] });
        id
    }
}

/// Stacks and values of a file, for tests.
#[cfg(test)]
pub fn decode(bytes: &[u8]) -> Vec<(Vec<String>, Vec<i64>)> {
    let profile = pprof::Profile::decode(bytes).unwrap();
    let name = |id: &u64| {
        let location = profile.location.iter().find(|l| l.id == *id).unwrap();
        let function = profile.function.iter().find(|f| f.id == location.line[0].function_id).unwrap();
        profile.string_table[function.name as usize].clone()
    };
    profile.sample.iter().map(|s| (s.location_id.iter().map(name).collect(), s.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once() {
        let mut profile = Profile::new(Kind::Cpu, Duration::from_secs(1));
        let stack = |inner: &str| vec![inner.to_owned(), "thread".to_owned()];
        profile.add(&stack("user code"), &[1, 10]);
        profile.add(&stack("kernel"), &[2, 20]);
        assert_eq!(profile.profile.function.len(), 3);
        let told = decode(&profile.encode());
        assert_eq!(told, [(stack("user code"), vec![1, 10]), (stack("kernel"), vec![2, 20])]);
    }
}
