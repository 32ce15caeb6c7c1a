//! `--feature-gates`: etcd 3.7's gates, each with what this server makes of it.

use crate::flags::value::{Kind, Value};
use std::collections::BTreeMap;

/// A gate as etcd 3.7.1 has it.
#[derive(Debug)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Whether it is on by itself.
    pub default: bool,
    /// Beta, else alpha: `AllBeta` and `AllAlpha` set all of a kind.
    beta: bool,
}

const fn alpha(name: &'static str) -> Gate {
    Gate { name, default: false, beta: false }
}

const fn beta(name: &'static str) -> Gate {
    Gate { name, default: true, beta: true }
}

/// Gates that switch something in this server.
const EFFECTIVE: [&str; 6] = [
    "CompactHashCheck",
    "InitialCorruptCheck",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
];

/// All gates, in the order of the help. For most of them this server has nothing to switch; see
/// [`Gates::without_effect`].
pub const GATES: [Gate; 9] = [
    alpha("CompactHashCheck"),
    beta("FastLeaseKeepAlive"),
    alpha("InitialCorruptCheck"),
    alpha("LeaseCheckpoint"),
    alpha("LeaseCheckpointPersist"),
    alpha("PriorityRequest"),
    alpha("SetMemberLocalAddr"),
    alpha("StopGRPCServiceOnDefrag"),
    beta("TxnModeWriteWithSharedBuffer"),
];

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(BTreeMap<&'static str, bool>);

impl Value for Gates {
    const KIND: Kind = Kind::Text;

    fn set(&mut self, text: &str) -> Result<(), String> {
        let mut all = [None, None];
        for pair in text.split(',').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (name.trim(), value.trim());
            if !pair.contains('=') {
                return Err(format!("missing bool value for {name}"));
            }
            let on = bool::read(value).map_err(|_| {
                format!("invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")
            })?;
            match name {
                "AllAlpha" => all[0] = Some(on),
                "AllBeta" => all[1] = Some(on),
                _ => {
                    let gate = GATES.iter().find(|g| g.name == name);
                    let gate = gate.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
                    self.0.insert(gate.name, on);
                }
            }
        }
        for gate in &GATES {
            if let Some(on) = all[usize::from(gate.beta)] {
                self.0.entry(gate.name).or_insert(on);
            }
        }
        Ok(())
    }
}

impl Gates {
    /// Whether a gate is on.
    pub fn enabled(&self, name: &str) -> bool {
        let default = || GATES.iter().any(|g| g.name == name && g.default);
        self.0.get(name).copied().unwrap_or_else(default)
    }

    /// Gates that were set to something that this server does not do.
    pub fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        let differs = |g: &&Gate| self.enabled(g.name) != g.default && !EFFECTIVE.contains(&g.name);
        GATES.iter().filter(differs).map(|g| g.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_as_etcd_reads_them() {
        let text = "InitialCorruptCheck=true,AllBeta=false, FastLeaseKeepAlive = true,PriorityRequest=true";
        let gates = Gates::read(text).unwrap();
        assert!(gates.enabled("InitialCorruptCheck") && gates.enabled("FastLeaseKeepAlive"));
        assert!(!gates.enabled("TxnModeWriteWithSharedBuffer") && !gates.enabled("LeaseCheckpoint"));
        let odd: Vec<&str> = gates.without_effect().collect();
        assert_eq!(odd, ["PriorityRequest", "TxnModeWriteWithSharedBuffer"]);
    }

    #[test]
    fn bad_gates_are_refused_in_etcds_words() {
        assert_eq!(Gates::read("Foo=true").unwrap_err(), "unrecognized feature gate: Foo");
        assert_eq!(Gates::read("Foo").unwrap_err(), "missing bool value for Foo");
        let error = Gates::read("LeaseCheckpoint=maybe").unwrap_err();
        assert!(error.starts_with("invalid value of LeaseCheckpoint=maybe, err: strconv.ParseBool"), "{error}");
    }
}
