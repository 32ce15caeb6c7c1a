//! Who is let in and who is believed: the usual checks of a chain, and etcd's own on top.

use crate::tls::Allowed;
use crate::tls::certificate::{common_name, revoked, serial, subject_names};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use x509_parser::parse_x509_certificate;
use x509_parser::x509::X509Version;

/// A refusal in words of our own.
#[derive(Debug)]
struct Words(String);

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Words {}

fn refused(words: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Words(words)))))
}

/// What many a page on etcd and TLS makes, and etcd takes: `openssl x509 -req` without extensions.
fn explained(e: Error, cert: &CertificateDer<'_>) -> Error {
    match parse_x509_certificate(cert) {
        Ok((_, parsed)) if parsed.version() == X509Version::V1 => refused(format!(
            "it is an X.509 certificate of version 1 ({}), which this server does not take; issue it again with extensions \
             (openssl x509 -req -extfile ...)",
            parsed.subject()
        )),
        _ => e,
    }
}

impl Allowed {
    fn check(&self, cert: &CertificateDer<'_>) -> Result<(), Error> {
        let fits = match self {
            Allowed::Anyone => true,
            Allowed::CommonNames(names) => common_name(cert).is_some_and(|cn| names.contains(&cn)),
            Allowed::Hostnames(hosts) => {
                let parsed = ParsedCertificate::try_from(cert)?;
                let is_for = |host: &str| {
                    ServerName::try_from(host).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
                };
                hosts.iter().any(|host| is_for(host))
            }
        };
        if fits { Ok(()) } else { Err(refused("client certificate authentication failed".to_owned())) }
    }
}

/// Certificates that are trusted themselves. Go takes a certificate that is among the authorities for one of theirs, and
/// small set-ups live by it: one self-signed certificate, on all members and in every file. rustls would refuse it,
/// as that of an authority.
#[derive(Clone, Debug, Default)]
pub struct Pinned(Arc<HashSet<Vec<u8>>>);

impl Pinned {
    /// The certificates of the file of authorities.
    pub fn new<'c>(certs: impl Iterator<Item = &'c CertificateDer<'c>>) -> Self {
        Pinned(Arc::new(certs.map(|c| c.to_vec()).collect()))
    }

    /// Whether this is one of them; then what else a chain is checked for is checked here: time and purpose.
    fn vouch(&self, cert: &CertificateDer<'_>, for_client: bool, now: UnixTime) -> Result<bool, Error> {
        if !self.0.contains(cert.as_ref()) {
            return Ok(false);
        }
        let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = parse_x509_certificate(cert).map_err(|_| bad())?;
        let now = i64::try_from(now.as_secs()).map_err(|_| bad())?;
        if now < parsed.validity().not_before.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        let usage = parsed.extended_key_usage().map_err(|_| bad())?;
        let fits =
            usage.is_none_or(|u| u.value.any || if for_client { u.value.client_auth } else { u.value.server_auth });
        if fits { Ok(true) } else { Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)) }
    }
}

/// Checks callers: an authority vouches for them, they are not revoked, and they are allowed.
#[derive(Debug)]
pub struct Callers {
    chain: Arc<dyn ClientCertVerifier>,
    pinned: Pinned,
    revoked: HashSet<Vec<u8>>,
    allowed: Allowed,
}

impl Callers {
    /// On top of the check of the chain; `crl` are the bytes of a revocation list.
    pub fn new(
        chain: Arc<dyn ClientCertVerifier>,
        pinned: Pinned,
        crl: Option<&[u8]>,
        allowed: Allowed,
    ) -> Result<Self, String> {
        let revoked = crl.map(revoked).transpose()?.unwrap_or_default();
        Ok(Callers { chain, pinned, revoked, allowed })
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = if self.pinned.vouch(cert, true, now)? {
            ClientCertVerified::assertion()
        } else {
            self.chain.verify_client_cert(cert, intermediates, now).map_err(|e| explained(e, cert))?
        };
        for serial in std::iter::once(cert).chain(intermediates).filter_map(serial) {
            if self.revoked.contains(&serial) {
                let hex: String = serial.iter().map(|b| format!("{b:02x}")).collect();
                return Err(refused(format!("transport: certificate serial {hex} revoked")));
            }
        }
        self.allowed.check(cert)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks a member that is called. As in etcd, the names that callers must have are asked of it, too.
#[derive(Debug)]
pub struct Called {
    chain: Arc<dyn ServerCertVerifier>,
    pinned: Pinned,
    allowed: Allowed,
}

impl Called {
    /// On top of the check of the chain and of the host's name.
    pub fn new(chain: Arc<dyn ServerCertVerifier>, pinned: Pinned, allowed: Allowed) -> Self {
        Called { chain, pinned, allowed }
    }
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = if self.pinned.vouch(cert, false, now)? {
            verify_server_name(&ParsedCertificate::try_from(cert)?, name)?;
            ServerCertVerified::assertion()
        } else {
            self.chain.verify_server_cert(cert, intermediates, name, ocsp, now).map_err(|e| explained(e, cert))?
        };
        self.allowed.check(cert)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Believes any member: with `--peer-auto-tls` each has a certificate of its own making, and TLS only hides.
#[derive(Debug)]
pub struct Anyone(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// etcd's check of a calling member: its address is among the addresses of its certificate, or belongs to one of the
/// certificate's host names. A certificate without names passes. Bound its time: names are looked up.
pub async fn address_fits(cert: &CertificateDer<'_>, remote: IpAddr) -> Result<(), String> {
    let remote = remote.to_canonical();
    let (addresses, hosts) = subject_names(cert);
    if addresses.is_empty() && hosts.is_empty() || addresses.contains(&remote) {
        return Ok(());
    }
    if hosts.is_empty() {
        return Err(format!("x509: certificate is valid for {addresses:?}, not {remote}"));
    }
    let (wildcards, names): (Vec<&String>, Vec<&String>) = hosts.iter().partition(|h| h.starts_with("*."));
    for name in &names {
        if let Ok(mut found) = tokio::net::lookup_host((name.as_str(), 0)).await
            && found.any(|a| a.ip().to_canonical() == remote)
        {
            return Ok(());
        }
    }
    let reverse = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&remote)).await;
    if let Ok(Ok(host)) = reverse {
        let host = host.trim_end_matches('.');
        if names.iter().any(|n| *n == host) || wildcards.iter().any(|w| host.ends_with(&w[1..])) {
            return Ok(());
        }
    }
    Err(format!("tls: \"{remote}\" does not match any of DNSNames {hosts:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::server::WebPkiClientVerifier;

    /// A certificate of version 1, and its authority's; for a hundred years from 2026. Nobody has their keys.
    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGTCBwQIULSpIx96H0VOF5ZSb1JjZVvnaCskwCgYIKoZIzj0EAwIwDTELMAkG
A1UEAwwCY2EwIBcNMjYxMTIzMTk0NDMzWhgPMjEyNjEwMzAxOTQ0MzNaMBExDzAN
BgNVBAMMBmNsaWVudDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABG8Mg6WCSB5Z
Po8ccNF8zUcby9+iz8Pn4JSlKUQTRquHQU+m7liUQzD695kltnvDqkmwriMLhQPS
q7zNw/oaOEQwCgYIKoZIzj0EAwIDRwAwRAIgKQ/rSchDIqLmyz30hdBGYHG3GPN8
4Ut5pBvG+gP5ieACIG4BsDLsXjM4jriT8WQ8DLh/qxpmHTij/sBpURs+zJQl
-----END CERTIFICATE-----
-----BEGIN CERTIFICATE-----
MIIBcjCCARegAwIBAgIUG7GjAMV10a/7tnTz1ehG5wwm/cUwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMTk0NDMzWhgPMjEyNjEwMzAxOTQ0MzNa
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEbwwSNpfo
XRDBDDUaDtMW9aqR1Si9UmZGgVMm6BaU8KnKV97F5IlBXvwjoIdfbi6cE4HmRb1s
jf9oDP+xW1TXGaNTMFEwHQYDVR0OBBYEFN57KGide/hr0QHgRlT8cYAhu2//MB8G
A1UdIwQYMBaAFN57KGide/hr0QHgRlT8cYAhu2//MA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSQAwRgIhAPoJDnWZ1v4K50r8NzppUaWIDnE6Y8s/uaqRfp5r
NGdiAiEA69LXTkHCK4k5TZe71skj4StLsHzZklhB62kqLoPgSjM=
-----END CERTIFICATE-----
";

    #[test]
    fn a_certificate_of_version_1_is_refused_with_the_remedy() {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(VERSION_1.as_bytes()).map(Result::unwrap).collect();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain[1].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let callers = Callers::new(webpki, Pinned::default(), None, Allowed::Anyone).unwrap();
        let why = callers.verify_client_cert(&chain[0], &[], UnixTime::now()).unwrap_err().to_string();
        assert!(why.contains("version 1 (CN=client)") && why.contains("-extfile"), "{why}");
    }
}
