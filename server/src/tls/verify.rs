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
            self.chain.verify_client_cert(cert, intermediates, now)?
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
            self.chain.verify_server_cert(cert, intermediates, name, ocsp, now)?
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
