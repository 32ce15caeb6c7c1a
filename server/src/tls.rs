//! TLS as the flags ask for it: which files, versions and suites, and whom the other side may be.

pub mod certificate;
pub mod in_use;
pub mod material;
pub mod self_signed;
pub mod verify;

use crate::cli::Notice;
use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use std::path::PathBuf;
use std::sync::Arc;

/// The files of one side, clients' or members', and what is asked of who calls.
#[derive(Clone, Debug)]
pub struct Files {
    /// The flags of the six files below, in their order, for errors.
    pub flags: [&'static str; 6],
    /// What listeners show.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Authorities; without them the system's.
    pub trusted_ca: Option<PathBuf>,
    /// Revoked certificates.
    pub crl: Option<PathBuf>,
    /// What is shown on calls to others, if it is another certificate.
    pub own_cert: Option<PathBuf>,
    /// Its key.
    pub own_key: Option<PathBuf>,
    /// Callers must show a certificate.
    pub asks_client: bool,
    /// The common name in it is the caller's user.
    pub names_client: bool,
    /// Whose certificates are let in.
    pub allowed: Allowed,
    /// Make a certificate if none is given.
    pub auto: bool,
    /// They are for calls to others, too.
    pub calls: bool,
}

/// Whose certificates are let in, of those that an authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// All.
    Anyone,
    /// Those with one of these common names.
    CommonNames(Vec<String>),
    /// Those that are for one of these hosts.
    Hostnames(Vec<String>),
}

impl Files {
    /// Whether a certificate was given.
    pub fn is_given(&self) -> bool {
        self.cert.is_some() || self.key.is_some()
    }

    /// The same without any file.
    pub fn without(&self) -> Self {
        Files { cert: None, key: None, trusted_ca: None, crl: None, own_cert: None, own_key: None, ..self.clone() }
    }

    /// Whether each certificate comes with its key.
    pub fn check(&self, notices: &mut Vec<Notice>, whose: &str) -> Result<(), String> {
        let text = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |p| p.display().to_string());
        if self.cert.is_some() != self.key.is_some() {
            return Err(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                text(&self.key),
                text(&self.cert)
            ));
        }
        if self.own_cert.is_some() != self.own_key.is_some() {
            return Err(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
                text(&self.own_key),
                text(&self.own_cert)
            ));
        }
        if self.auto && self.is_given() {
            notices.push(Notice::Other(format!("ignoring {whose} auto TLS since certs given")));
        }
        Ok(())
    }
}

/// Protocol versions and cipher suites, the same for all listeners and calls.
#[derive(Clone, Debug)]
pub struct Params {
    /// The versions.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// The suites, with the rest of the cryptography.
    pub provider: Arc<CryptoProvider>,
    /// Suites that were asked for and are not there.
    pub left_out: Vec<String>,
}

impl Params {
    /// From `--tls-min-version`, `--tls-max-version` and `--cipher-suites`. As in Go, the list is for TLS 1.2, and
    /// the suites of 1.3 are always all there.
    pub fn new(min: &str, max: &str, suites: &[String]) -> Result<Self, String> {
        let (low, high) = (version(min)?.unwrap_or(2), version(max)?.unwrap_or(3));
        if low > high {
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        if low == 3 && !suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let mut provider = ring::default_provider();
        let mut left_out = Vec::new();
        if !suites.is_empty() {
            let known = std::mem::take(&mut provider.cipher_suites);
            let names: Vec<String> = known.iter().map(|s| name(*s)).collect();
            let mut chosen: Vec<_> = known.iter().copied().filter(|s| s.tls13().is_some()).collect();
            let asked = |suite: &str| names.iter().position(|n| n == suite || n.strip_suffix("_SHA256") == Some(suite));
            let usable = suites.iter().any(|suite| asked(suite).is_some_and(|at| known[at].tls13().is_none()));
            for suite in suites {
                match asked(suite) {
                    Some(at) if chosen.contains(&known[at]) => {}
                    Some(at) => chosen.push(known[at]),
                    None if usable && ONLY_GOS.contains(&suite.as_str()) => left_out.push(suite.clone()),
                    None => {
                        let names = names.join(", ");
                        return Err(format!("unexpected TLS cipher suite {suite:?}: this server has {names}"));
                    }
                }
            }
            provider.cipher_suites = chosen;
        }
        let versions = [(2, &TLS12), (3, &TLS13)];
        let versions = versions.into_iter().filter(|(n, _)| (low..=high).contains(n)).map(|(_, v)| v).collect();
        Ok(Params { versions, provider: Arc::new(provider), left_out })
    }
}

/// Suites that Go has and rustls does not, for what is known of them: hardening guides still end their lists with some.
const ONLY_GOS: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

fn version(text: &str) -> Result<Option<u8>, String> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(2)),
        "TLS1.3" => Ok(Some(3)),
        _ => Err(format!("unexpected TLS version {text:?} (must be one of: TLS1.2, TLS1.3)")),
    }
}

/// A suite's name as the registry of the IANA has it.
fn name(suite: rustls::SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(suites: &[&str]) -> Result<Vec<String>, String> {
        let suites: Vec<String> = suites.iter().map(|s| (*s).to_owned()).collect();
        let params = Params::new("TLS1.2", "", &suites)?;
        Ok(params.provider.cipher_suites.iter().map(|s| name(*s)).filter(|n| n.contains("WITH")).collect())
    }

    #[test]
    fn suites_are_taken_in_their_order_and_by_both_of_gos_names() {
        let asked = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"];
        let got = names(&asked).unwrap();
        assert_eq!(got, [asked[0], "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!(names(&["TLS_AES_128_GCM_SHA256"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_suite_is_refused_with_those_that_there_are() {
        let error = names(&["TLS_RSA_WITH_AES_128_CBC_SHA"]).unwrap_err();
        assert!(error.starts_with("unexpected TLS cipher suite \"TLS_RSA_WITH_AES_128_CBC_SHA\""), "{error}");
        assert!(error.contains("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"), "{error}");
        assert!(names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_NOTHING"]).is_err());
    }

    /// As the CIS benchmark for Kubernetes has them.
    #[test]
    fn a_suite_that_only_go_has_is_left_out_where_another_stays() {
        let list = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_256_GCM_SHA384"];
        assert_eq!(names(&list).unwrap(), list[..1]);
        let params = Params::new("", "", &list.map(str::to_owned)).unwrap();
        assert_eq!(params.left_out, list[1..]);
    }

    #[test]
    fn versions_are_a_range() {
        let count = |min: &str, max: &str| Params::new(min, max, &[]).unwrap().versions.len();
        assert_eq!((count("TLS1.2", ""), count("TLS1.3", ""), count("TLS1.2", "TLS1.2")), (2, 1, 1));
    }
}
