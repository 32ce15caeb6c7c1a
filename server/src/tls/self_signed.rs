//! `--auto-tls` and `--peer-auto-tls`: a certificate of our own making, kept below the data directory.

use crate::tls::Files;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longer would leave what a certificate can say.
const YEARS_MAX: usize = 1000;

/// Gives `files` the pair in `dir`, and makes it first if it is not there, for these hosts.
pub fn ensure(mut files: Files, dir: &Path, hosts: &[String], years: usize) -> Result<Files, String> {
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    if !(cert_path.exists() && key_path.exists()) {
        if !(1..=YEARS_MAX).contains(&years) {
            return Err(format!(
                "--self-signed-cert-validity is invalid, it should be greater than 0 and at most {YEARS_MAX} years"
            ));
        }
        let (cert, key) = make(hosts, years).map_err(|e| format!("cannot make a certificate: {e}"))?;
        let written = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| write(&key_path, &key))
            .and_then(|()| write(&cert_path, &cert));
        written.map_err(|e| format!("cannot write the made certificate to {}: {e}", dir.display()))?;
        tracing::warn!(cert = %cert_path.display(), years, "automatically generate certificates");
    }
    files.cert = Some(cert_path);
    files.key = Some(key_path);
    Ok(files)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn make(hosts: &[String], years: usize) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    // Clocks of clients may be a little behind.
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + YEAR * u32::try_from(years).unwrap_or(1)).into();
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
