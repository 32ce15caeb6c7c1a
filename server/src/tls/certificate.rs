//! What a certificate says of its owner, and what a revocation list says of certificates.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
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
