//! A certificate authority for tests: issues, revokes, and is replaced.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// An authority, with the folder that it writes to.
pub struct Pki {
    dir: PathBuf,
    pub ca: PathBuf,
    pub ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate in its files.
#[derive(Clone)]
pub struct Cert {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Pki {
    /// A new one; its certificate is in `ca.pem`.
    pub fn new(dir: &Path) -> Self {
        Pki::named(dir, "ca")
    }

    /// A new one; its certificate is in `<name>.pem`.
    pub fn named(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let ca = dir.join(format!("{name}.pem"));
        fs::write(&ca, &ca_pem).unwrap();
        Pki { dir: dir.to_owned(), ca, ca_pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate of an authority that is also a server's and a client's, as `openssl req -x509` makes it.
    pub fn self_signed(dir: &Path) -> Cert {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = Cert { cert: dir.join("all.pem"), key: dir.join("all-key.pem") };
        fs::write(&cert.key, key.serialize_pem()).unwrap();
        fs::write(&cert.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        cert
    }

    /// A certificate for this machine, for servers and clients, with this common name.
    pub fn issue(&self, file: &str, common_name: &str) -> Cert {
        self.issue_for(file, common_name, 1, &["localhost", "127.0.0.1"])
    }

    /// A certificate with this serial number for these hosts.
    pub fn issue_for(&self, file: &str, common_name: &str, serial: u64, hosts: &[&str]) -> Cert {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let cert = Cert { cert: self.dir.join(format!("{file}.pem")), key: self.dir.join(format!("{file}-key.pem")) };
        fs::write(&cert.key, key.serialize_pem()).unwrap();
        fs::write(&cert.cert, signed.pem()).unwrap();
        cert
    }

    /// Writes the list of revoked serial numbers, in DER as etcd wants it.
    pub fn revoke(&self, file: &Path, serials: &[u64]) {
        let now = SystemTime::now();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        fs::write(file, params.signed_by(&self.issuer).unwrap().der()).unwrap();
    }
}
