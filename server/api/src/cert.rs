//! Who a caller is by its TLS certificate.

/// The common name of the verified client certificate of a request's connection. The listener puts it into the
/// request's extensions, if `--client-cert-auth` is set; it is then the user's name, unless a token says otherwise. An
/// empty name is that of a user who does not exist, as in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertName(pub String);
