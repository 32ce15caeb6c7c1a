//! Certificates in use. The files are read before each handshake, as etcd reads its leaf certificates, and a change of
//! any of them, the authorities and revocations too, holds for the next connection. Files that do not fit together, as
//! half of a new pair does, leave what was in use.

use crate::tls::verify::{Anyone, Called, Callers, Pinned};
use crate::tls::{Files, Params};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file that is read: a long revocation list has a few megabytes.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// The certificates of one side, clients' or members'.
#[derive(Debug)]
pub struct Material {
    files: Files,
    params: Params,
    /// Made by ourselves: nobody can vouch for the others'.
    self_signed: bool,
    held: Mutex<Held>,
}

/// What listeners and calls use.
#[derive(Clone, Debug)]
pub struct Configs {
    /// For listeners; nothing without a certificate.
    pub server: Option<Arc<ServerConfig>>,
    /// For calls to others; nothing where there are none, or where no authority is known.
    pub client: Option<Arc<ClientConfig>>,
}

#[derive(Debug)]
struct Held {
    contents: Contents,
    configs: Configs,
    /// What was wrong at the last look: each trouble is logged once.
    trouble: Option<String>,
}

/// The bytes of the six files.
#[derive(PartialEq, Eq)]
struct Contents([Option<Vec<u8>>; 6]);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are among them.
        f.write_str("Contents")
    }
}

impl Material {
    /// Reads the files for the first time; now any trouble is an error.
    pub fn open(files: Files, params: Params, self_signed: bool) -> Result<Arc<Self>, String> {
        let contents = read(&files)?;
        let configs = build(&files, &params, self_signed, &contents)?;
        let held = Mutex::new(Held { contents, configs, trouble: None });
        Ok(Arc::new(Material { files, params, self_signed, held }))
    }

    /// What holds now. Reads the files, so it is for threads that may block.
    pub fn current(&self) -> Configs {
        let mut held = self.held.lock();
        let looked = read(&self.files).and_then(|contents| {
            if contents == held.contents {
                return Ok(None);
            }
            let configs = build(&self.files, &self.params, self.self_signed, &contents)?;
            Ok(Some((contents, configs)))
        });
        match looked {
            Ok(None) => held.trouble = None,
            Ok(Some((contents, configs))) => {
                tracing::info!(cert = ?self.files.cert, "certificate files have changed; new connections use them");
                *held = Held { contents, configs, trouble: None };
            }
            Err(why) if held.trouble.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!("certificate files cannot be used, so those read before stay in use: {why}");
                held.trouble = Some(why);
            }
        }
        held.configs.clone()
    }

    /// The certificates that the next connection uses, with the flags of their files: what is shown (the chain behind it
    /// is left out), and authorities. Reads the files.
    pub fn in_use(&self) -> Vec<(&'static str, CertificateDer<'static>)> {
        self.current();
        let held = self.held.lock();
        let [cert, _, trusted_ca, _, own_cert, _] = &held.contents.0;
        let files = [(0, cert, 1), (2, trusted_ca, usize::MAX), (4, own_cert, 1)];
        let certificates = files.into_iter().flat_map(|(at, pem, most)| {
            let found = CertificateDer::pem_slice_iter(pem.as_deref().unwrap_or_default()).flatten().take(most);
            found.map(move |der| (self.files.flags[at], der))
        });
        certificates.collect()
    }

    /// What is asked of callers.
    pub fn files(&self) -> &Files {
        &self.files
    }
}

fn paths(files: &Files) -> [&Option<PathBuf>; 6] {
    [&files.cert, &files.key, &files.trusted_ca, &files.crl, &files.own_cert, &files.own_key]
}

fn read(files: &Files) -> Result<Contents, String> {
    let mut contents = [const { None }; 6];
    for ((path, flag), slot) in paths(files).into_iter().zip(files.flags).zip(&mut contents) {
        if let Some(path) = path {
            *slot = Some(read_file(path).map_err(|e| format!("{flag}: cannot read {}: {e}", path.display()))?);
        }
    }
    Ok(Contents(contents))
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn build(files: &Files, params: &Params, self_signed: bool, contents: &Contents) -> Result<Configs, String> {
    let Contents([cert, key, trusted_ca, crl, own_cert, own_key]) = contents;
    let at = |n: usize, why: String| {
        let path = paths(files)[n].as_ref().map_or(String::new(), |p| p.display().to_string());
        format!("{} {path}: {why}", files.flags[n])
    };
    let pair = |cert: &Option<Vec<u8>>, key: &Option<Vec<u8>>, n: usize| -> Result<Option<Pair>, String> {
        let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|e| at(n, format!("not a certificate in PEM: {e}")))?;
        if chain.is_empty() {
            return Err(at(n, "it holds no certificate in PEM".to_owned()));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|e| at(n + 1, format!("not a private key in PEM: {e}")))?;
        Ok(Some((chain, key)))
    };
    let (shown, own) = (pair(cert, key, 0)?, pair(own_cert, own_key, 4)?);
    let roots = match trusted_ca {
        Some(bytes) => {
            let (roots, pinned) = authorities(bytes).map_err(|why| at(2, why))?;
            Some((Arc::new(roots), pinned))
        }
        None => None,
    };

    let server = match &shown {
        Some((chain, key)) => {
            let builder = ServerConfig::builder_with_provider(params.provider.clone())
                .with_protocol_versions(&params.versions)
                .map_err(|e| format!("TLS versions and cipher suites do not fit: {e}"))?;
            let builder = if files.asks_client {
                let (roots, pinned) = roots.clone().unwrap_or_else(system_authorities);
                let chain = WebPkiClientVerifier::builder_with_provider(roots, params.provider.clone())
                    .build()
                    .map_err(|e| at(2, e.to_string()))?;
                let callers =
                    Callers::new(chain, pinned, crl.as_deref(), files.allowed.clone()).map_err(|why| at(3, why))?;
                builder.with_client_cert_verifier(Arc::new(callers))
            } else {
                builder.with_no_client_auth()
            };
            let mut config = builder
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|e| format!("{} and {} do not fit together: {e}", files.flags[0], files.flags[1]))?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            // A resumed session would come in without another look at its certificate, and gRPC's are long.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(Arc::new(config))
        }
        None => None,
    };

    let client = if files.calls { caller(files, params, self_signed, roots, own.or(shown))? } else { None };
    Ok(Configs { server, client })
}

/// What calls to other members use. A system without any authority is no error: most members call by `http://`.
fn caller(
    files: &Files,
    params: &Params,
    self_signed: bool,
    roots: Option<(Arc<RootCertStore>, Pinned)>,
    own: Option<Pair>,
) -> Result<Option<Arc<ClientConfig>>, String> {
    let builder = ClientConfig::builder_with_provider(params.provider.clone())
        .with_protocol_versions(&params.versions)
        .map_err(|e| format!("TLS versions and cipher suites do not fit: {e}"))?
        .dangerous();
    let builder = if self_signed {
        builder.with_custom_certificate_verifier(Arc::new(Anyone(params.provider.clone())))
    } else {
        let (roots, pinned) = roots.unwrap_or_else(system_authorities);
        if roots.is_empty() {
            return Ok(None);
        }
        let chain = WebPkiServerVerifier::builder_with_provider(roots, params.provider.clone()).build();
        let chain = chain.map_err(|e| format!("{}: {e}", files.flags[2]))?;
        builder.with_custom_certificate_verifier(Arc::new(Called::new(chain, pinned, files.allowed.clone())))
    };
    let mut client = match own {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|e| format!("{} and {} do not fit together: {e}", files.flags[4], files.flags[5]))?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    Ok(Some(Arc::new(client)))
}

fn authorities(pem: &[u8]) -> Result<(RootCertStore, Pinned), String> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("not a certificate in PEM: {e}"))?;
    if certs.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    let pinned = Pinned::new(certs.iter());
    let mut roots = RootCertStore::empty();
    for cert in certs {
        roots.add(cert).map_err(|e| format!("not a usable authority: {e}"))?;
    }
    Ok((roots, pinned))
}

/// Without a file of authorities those of the system hold, as in etcd. A system may have none; then nobody passes.
fn system_authorities() -> (Arc<RootCertStore>, Pinned) {
    let mut roots = RootCertStore::empty();
    let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (Arc::new(roots), Pinned::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Allowed;
    use std::fs;

    fn issue(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    fn files(dir: &Path) -> Files {
        Files {
            flags: ["--cert-file", "--key-file", "--trusted-ca-file", "--client-crl-file", "", ""],
            cert: Some(dir.join("cert.pem")),
            key: Some(dir.join("key.pem")),
            trusted_ca: Some(dir.join("ca.pem")),
            crl: None,
            own_cert: None,
            own_key: None,
            asks_client: true,
            names_client: false,
            allowed: Allowed::Anyone,
            auto: false,
            calls: true,
        }
    }

    fn server(configs: &Configs) -> *const ServerConfig {
        Arc::as_ptr(configs.server.as_ref().unwrap())
    }

    #[test]
    fn a_new_pair_is_taken_when_it_is_whole_and_a_new_authority_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let ((cert, key), (cert2, key2)) = (issue("a"), issue("b"));
        write("cert.pem", &cert);
        write("key.pem", &key);
        write("ca.pem", &cert);
        let material = Material::open(files(dir.path()), Params::new("", "", &[]).unwrap(), false).unwrap();
        let first = server(&material.current());
        assert_eq!(server(&material.current()), first);
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let told = |shown: &String, authority: &String| {
            assert_eq!(material.in_use(), [("--cert-file", der(shown)), ("--trusted-ca-file", der(authority))]);
        };
        told(&cert, &cert);

        for half in [&cert2[..100], &cert2] {
            write("cert.pem", half);
            assert_eq!(server(&material.current()), first, "half of a new pair was taken");
            told(&cert, &cert);
        }
        write("key.pem", &key2);
        told(&cert2, &cert);
        let second = server(&material.current());
        assert_ne!(second, first);

        write("ca.pem", &cert2);
        told(&cert2, &cert2);
        let third = server(&material.current());
        assert_ne!(third, second);
        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert_eq!(server(&material.current()), third);
    }

    /// The four files, whatever is in them: the ones before stay in use, and it is said what is wrong.
    #[test]
    fn fuzz_certificate_files() {
        const BETWEEN: &[u8] = b"\n====\n";
        let (cert, key) = issue("a");
        let files = files(Path::new("."));
        let params = Params::new("", "", &[]).unwrap();
        let read = |bytes: &[u8]| {
            let mut rest = bytes;
            let mut parts = std::iter::from_fn(|| {
                let at = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN).unwrap_or(rest.len());
                let part = rest.get(..at).unwrap_or_default().to_vec();
                rest = rest.get(at + BETWEEN.len()..).unwrap_or_default();
                Some(part)
            });
            let [cert, key, ca] = [(); 3].map(|()| parts.next());
            let crl = parts.next().filter(|crl| !crl.is_empty());
            build(&files, &params, false, &Contents([cert, key, ca, crl, None, None]))
        };
        let seed = [&cert, &key, &cert].map(String::as_bytes).join(BETWEEN);
        assert!(read(&seed).is_ok(), "{:?}", read(&seed));
        let seeds = [seed, [&[&cert[..], &cert].concat(), &key, &cert].map(|part| part.as_bytes()).join(BETWEEN)];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "certificate_files").seeds(seeds);
        let words = [
            "-----BEGIN CERTIFICATE-----\n",
            "-----END CERTIFICATE-----\n",
            "-----BEGIN PRIVATE KEY-----\n",
            "\n====\n",
        ];
        fuzz.words(&words).quick(600).run(|bytes| match read(bytes) {
            Ok(configs) => format!("{} {}", configs.server.is_some(), configs.client.is_some()),
            Err(why) => why,
        });
    }

    #[test]
    fn what_cannot_be_used_at_the_start_is_refused_by_flag_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || Material::open(files(dir.path()), Params::new("", "", &[]).unwrap(), false).map(drop).unwrap_err();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(open().starts_with("--cert-file: cannot read "), "{}", open());
        let ((cert, key), (_, other_key)) = (issue("a"), issue("b"));
        write("cert.pem", "x");
        write("key.pem", &other_key);
        write("ca.pem", &cert);
        assert!(open().contains("--cert-file") && open().contains("holds no certificate"), "{}", open());
        write("cert.pem", &cert);
        assert!(open().starts_with("--cert-file and --key-file do not fit together"), "{}", open());
        write("key.pem", &key);
        write("ca.pem", "");
        assert!(open().starts_with("--trusted-ca-file "), "{}", open());
    }
}
