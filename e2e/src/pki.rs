//! The cluster's certificates: one authority that signs everybody, made anew for each cluster and gone with it.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// An authority that issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    certificate: String,
}

/// A certificate with its key, both PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

/// Whom a certificate names. Kubernetes takes user and group from it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The common name: the user.
    pub user: &'a str,
    /// The organization: the group, if any.
    pub group: Option<&'a str>,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "ferretcd-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// A certificate for `subject`, usable as client and, for the names and addresses in `hosts`, as server.
    pub fn issue(&self, subject: Subject<'_>, hosts: &[String]) -> Result<Pair> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("issuing the certificate of {}", subject.user))?
            .pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }

    /// A kubeconfig for `subject` at `server`, with everything inside it.
    pub fn kubeconfig(&self, server: &str, subject: Subject<'_>) -> Result<String> {
        let pair = self.issue(subject, &[])?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "ferretcd", "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(&self.certificate),
            }}],
            "users": [{"name": subject.user, "user": {
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(&pair.key),
            }}],
            "contexts": [{"name": "ferretcd", "context": {"cluster": "ferretcd", "user": subject.user}}],
            "current-context": "ferretcd",
        });
        Ok(format!("{config:#}\n"))
    }

    /// Writes the authority's certificate and key as `ca.crt` and `ca.key`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write(&folder.join("ca.crt"), &self.certificate)?;
        write(&folder.join("ca.key"), &self.issuer.key().serialize_pem())
    }
}

impl Pair {
    /// Writes `<name>.crt` and `<name>.key`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        write(&folder.join(format!("{name}.crt")), &self.certificate)?;
        write(&folder.join(format!("{name}.key")), &self.key)
    }
}

/// A key pair for signing service-account tokens, as PEM: private and public.
pub fn signing_keys() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Writes a file that only its owner may read.
pub fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_kubeconfig_holds_the_authority_and_a_pair() {
        let authority = Authority::new().unwrap();
        let subject = Subject { user: "admin", group: Some("system:masters") };
        let config = authority.kubeconfig("https://10.0.0.1:6443", subject).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let data = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(data).unwrap(), authority.certificate.as_bytes());
    }

    #[test]
    fn openssl_verifies_what_the_authority_issues() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        authority.write(folder.path()).unwrap();
        let pair = authority.issue(Subject { user: "x", group: None }, &["10.0.0.1".into(), "x.y".into()]).unwrap();
        pair.write(folder.path(), "x").unwrap();
        let mode = std::fs::metadata(folder.path().join("x.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        if crate::host::find_program("openssl").is_none() {
            return; // A second opinion, where the host has one.
        }
        let mut verify = std::process::Command::new("openssl");
        verify.args(["verify", "-CAfile", "ca.crt", "x.crt"]).current_dir(folder.path());
        crate::run::output(&mut verify).unwrap();
    }
}
