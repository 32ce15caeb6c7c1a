//! What a certificate says of its owner, and what a revocation list says of certificates.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// The common name of the subject: the last one, as Go has it.
pub fn common_name(der: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = parse_x509_certificate(der).ok()?;
    let name = cert.subject().iter_common_name().last()?.as_str().ok()?.to_owned();
    Some(name)
}

/// The serial number, without leading zeros.
pub fn serial(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, cert) = parse_x509_certificate(der).ok()?;
    Some(trimmed(cert.raw_serial()))
}

/// What tells a certificate from others, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The serial number in hexadecimal digits.
    pub serial: String,
    /// The SHA-256 of all of it in hexadecimal digits.
    pub sha256: String,
    /// The last second that it holds, since 1970.
    pub expires: i64,
}

/// What there is to tell of a certificate.
pub fn about(der: &CertificateDer<'_>) -> Option<About> {
    let (_, cert) = parse_x509_certificate(der).ok()?;
    Some(About {
        serial: hex(&trimmed(cert.raw_serial())),
        sha256: hex(&Sha256::digest(der)),
        expires: cert.validity().not_after.timestamp(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn trimmed(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|b| *b == 0).collect()
}

/// The addresses and host names that the certificate is for.
pub fn subject_names(der: &CertificateDer<'_>) -> (Vec<IpAddr>, Vec<String>) {
    let (mut addresses, mut hosts) = (Vec::new(), Vec::new());
    let Ok((_, cert)) = parse_x509_certificate(der) else { return (addresses, hosts) };
    if let Ok(Some(names)) = cert.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                    addresses.extend(v4.or(v6));
                }
                _ => {}
            }
        }
    }
    (addresses, hosts)
}

/// The serial numbers of a revocation list, in DER as etcd reads it, or in PEM. Who issued it is not looked at, as in
/// etcd: the file is the administrator's.
pub fn revoked(bytes: &[u8]) -> Result<HashSet<Vec<u8>>, String> {
    let lists: Vec<CertificateRevocationListDer<'_>> = if bytes.starts_with(b"-----BEGIN") {
        CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("not a certificate revocation list: {e}"))?
    } else {
        vec![bytes.into()]
    };
    if lists.is_empty() {
        return Err("it holds no certificate revocation list".to_owned());
    }
    let mut serials = HashSet::new();
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list.as_ref())
            .map_err(|e| format!("not a certificate revocation list: {e}"))?;
        serials.extend(list.iter_revoked_certificates().map(|r| trimmed(r.raw_serial())));
    }
    Ok(serials)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of two revoked certificates.
    fn list() -> rcgen::CertificateRevocationList {
        use rcgen::{CertificateRevocationListParams, RevokedCertParams, SerialNumber};
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        let issuer = rcgen::Issuer::new(params, key);
        let now = rcgen::date_time_ymd(2030, 1, 1);
        let revoked = |serial: u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked(1), revoked(0x80ff)],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap()
    }

    #[test]
    fn fuzz_revocations() {
        let list = list();
        assert_eq!(revoked(list.der()).unwrap(), HashSet::from([vec![1], vec![0x80, 0xff]]));
        let pem = list.pem().unwrap();
        let seeds = [list.der().to_vec(), pem.clone().into_bytes(), [pem.clone(), pem].concat().into_bytes()];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "revocations").seeds(seeds);
        fuzz.words(&["-----BEGIN X509 CRL-----\n", "-----END X509 CRL-----\n", "\n"]).run(|bytes| {
            let said = revoked(bytes).map(|serials| {
                assert!(serials.iter().all(|serial| serial.first() != Some(&0)));
                "x".repeat(serials.len().min(9))
            });
            format!("{said:?}")
        });
    }

    #[test]
    fn fuzz_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["a.test".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
        let cert = params.self_signed(&key).unwrap();
        let pem = cert.pem().replace("CERTIFICATE", "X509 CRL");
        let seeds = [cert.der().to_vec(), cert.pem().into_bytes(), pem.into_bytes()];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "certificate").seeds(seeds);
        fuzz.words(&["-----BEGIN X509 CRL-----\n", "-----END X509 CRL-----\n"]).run(|bytes| {
            let der = CertificateDer::from(bytes);
            let (addresses, hosts) = subject_names(&der);
            format!(
                "{:?} {:?} {:?} {addresses:?} {hosts:?} {:?}",
                common_name(&der),
                serial(&der).map(|s| s.len()),
                about(&der).map(|a| a.expires > 0),
                revoked(bytes).map(|r| r.len())
            )
        });
    }
}
