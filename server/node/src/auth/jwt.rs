//! Signed tokens (JWT): any member with the public key knows a user by one, and none has to keep it.

use ferretcd_types::{Client, Error};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Signs and verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Jwt {
    keys: Arc<Keys>,
}

struct Keys {
    algorithm: Algorithm,
    /// None on a member that only verifies.
    sign: Option<EncodingKey>,
    verify: DecodingKey,
    validation: Validation,
    ttl: Duration,
}

/// etcd's claims.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    /// The auth revision at which the user was let in. Others may write it as a float.
    revision: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("algorithm", &self.keys.algorithm).finish_non_exhaustive()
    }
}

/// The methods, by the names that etcd and JWT itself give them.
const METHODS: &[(&str, Algorithm)] = &[
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
];

impl Jwt {
    /// From the contents of key files (PEM; for HS* the bytes themselves). With a private key alone the public one
    /// follows from it; with a public key alone tokens are only verified.
    pub fn new(method: &str, public: Option<&[u8]>, private: Option<&[u8]>, ttl: Duration) -> Result<Jwt, String> {
        let algorithm = METHODS.iter().find(|(name, _)| *name == method).map(|(_, algorithm)| *algorithm);
        let algorithm = algorithm.ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
            let why = if method == "ES512" { ", which this server cannot make or check" } else { "" };
            format!("invalid auth signature method {method:?}{why}: use one of {}", names.join(", "))
        })?;
        let family = algorithm.family();
        let sign = private.map(|pem| signing_key(algorithm, pem)).transpose()?;
        let given = public.filter(|_| family != AlgorithmFamily::Hmac).map(|pem| verifying_key(family, pem));
        let verify = match (given.transpose()?, &sign, private) {
            (None, Some(_), Some(secret)) if family == AlgorithmFamily::Hmac => DecodingKey::from_secret(secret),
            (given, Some(sign), _) => {
                let derived = Jwk::from_encoding_key(sign, algorithm).map_err(bad("private key"))?;
                let derived = DecodingKey::from_jwk(&derived).map_err(bad("private key"))?;
                let keys = Keys::new(algorithm, Some(sign.clone()), given.unwrap_or(derived), ttl);
                return keys.matched();
            }
            (Some(given), None, _) => given,
            (None, _, _) => return Err("missing key data: give pub-key, priv-key or both".to_owned()),
        };
        Ok(Jwt { keys: Arc::new(Keys::new(algorithm, sign, verify, ttl)) })
    }

    /// A token for a user that has just been let in.
    pub(crate) fn sign(&self, user: &str, auth_revision: u64) -> Result<String, Error> {
        let Keys { algorithm, sign, ttl, .. } = &*self.keys;
        let key = sign.as_ref().ok_or(Error::VerifyOnly)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::internal)?;
        let claims =
            Claims { username: user.to_owned(), revision: auth_revision as f64, exp: Some((now + *ttl).as_secs()) };
        jsonwebtoken::encode(&Header::new(*algorithm), &claims, key).map_err(Error::internal)
    }

    /// Whose token it is, if it is good.
    pub(crate) fn verify(&self, token: &str) -> Option<Client> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.keys.verify, &self.keys.validation).ok()?.claims;
        Some(Client { user: claims.username, auth_revision: claims.revision as u64 })
    }
}

impl Keys {
    fn new(algorithm: Algorithm, sign: Option<EncodingKey>, verify: DecodingKey, ttl: Duration) -> Keys {
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        // The second in which it ends is no longer its own.
        validation.reject_tokens_expiring_in_less_than = 1;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        // Others may sign tokens that do not end (etcd takes them).
        validation.required_spec_claims.clear();
        Keys { algorithm, sign, verify, validation, ttl }
    }

    /// The two keys belong together: what one signs the other knows.
    fn matched(self) -> Result<Jwt, String> {
        let jwt = Jwt { keys: Arc::new(self) };
        let probe = Keys { ttl: Duration::from_secs(3600), sign: jwt.keys.sign.clone(), ..jwt.keys.copied() };
        let probe = Jwt { keys: Arc::new(probe) };
        let token = probe.sign("probe", 1).map_err(|e| format!("the private key cannot sign: {e}"))?;
        match probe.verify(&token) {
            Some(_) => Ok(jwt),
            None => Err("public and private keys don't match".to_owned()),
        }
    }

    fn copied(&self) -> Keys {
        let Keys { algorithm, sign, verify, validation, ttl } = self;
        Keys {
            algorithm: *algorithm,
            sign: sign.clone(),
            verify: verify.clone(),
            validation: validation.clone(),
            ttl: *ttl,
        }
    }
}

fn signing_key(algorithm: Algorithm, pem: &[u8]) -> Result<EncodingKey, String> {
    match algorithm.family() {
        AlgorithmFamily::Hmac => Ok(EncodingKey::from_secret(pem)),
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem).map_err(bad("RSA private key")),
        AlgorithmFamily::Ec => {
            match std::str::from_utf8(pem).ok().and_then(|text| text.find(SEC1).map(|at| &text[at..])) {
                Some(sec1) => {
                    let pem = pkcs8(algorithm, sec1).map_err(|e| format!("key is not a valid EC private key: {e}"))?;
                    EncodingKey::from_ec_pem(pem.as_bytes()).map_err(bad("EC private key"))
                }
                None => EncodingKey::from_ec_pem(pem).map_err(bad("EC private key")),
            }
        }
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(pem).map_err(bad("Ed25519 private key")),
    }
}

/// How `openssl ecparam -genkey` begins a key, behind the curve's name.
const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----";

/// An EC key in SEC 1's form as the one in PKCS#8 that jsonwebtoken reads.
fn pkcs8(algorithm: Algorithm, sec1: &str) -> Result<impl Deref<Target = String>, String> {
    let ending = LineEnding::LF;
    match algorithm {
        Algorithm::ES256 => {
            let key = p256::SecretKey::from_sec1_pem(sec1).map_err(|e| format!("{e} (ES256 takes a key on P-256)"))?;
            key.to_pkcs8_pem(ending).map_err(|e| e.to_string())
        }
        _ => {
            let key = p384::SecretKey::from_sec1_pem(sec1).map_err(|e| format!("{e} (ES384 takes a key on P-384)"))?;
            key.to_pkcs8_pem(ending).map_err(|e| e.to_string())
        }
    }
}

fn verifying_key(family: AlgorithmFamily, pem: &[u8]) -> Result<DecodingKey, String> {
    match family {
        AlgorithmFamily::Hmac => Ok(DecodingKey::from_secret(pem)),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem).map_err(bad("RSA public key")),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem).map_err(bad("EC public key")),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem).map_err(bad("Ed25519 public key")),
    }
}

fn bad(what: &'static str) -> impl FnOnce(jsonwebtoken::errors::Error) -> String {
    move |e| format!("key is not a valid {what}: {e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_shared_secret_signs_and_verifies() {
        let jwt = Jwt::new("HS256", None, Some(b"secret"), HOUR).unwrap();
        let token = jwt.sign("alice", 7).unwrap();
        assert_eq!(jwt.verify(&token), Some(Client { user: "alice".into(), auth_revision: 7 }));
        let other = Jwt::new("HS256", None, Some(b"other"), HOUR).unwrap();
        assert_eq!(other.verify(&token), None);
        let longer = Jwt::new("HS512", None, Some(b"secret"), HOUR).unwrap();
        assert_eq!(longer.verify(&token), None, "another method is another token");
        assert_eq!(jwt.verify("no.token.atall"), None);
    }

    #[test]
    fn a_token_ends_with_its_time() {
        let jwt = Jwt::new("HS256", None, Some(b"secret"), Duration::ZERO).unwrap();
        assert_eq!(jwt.verify(&jwt.sign("alice", 7).unwrap()), None);
    }

    /// A private key and its public one.
    fn rsa_pair() -> (String, String) {
        use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
        let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let public = private.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
        (private.to_pkcs8_pem(LineEnding::LF).unwrap().to_string(), public)
    }

    #[test]
    fn what_one_rsa_key_signs_its_public_key_verifies() {
        let (private, public) = rsa_pair();
        let (private, public) = (private.as_bytes(), public.as_bytes());
        for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
            let both = Jwt::new(method, Some(public), Some(private), HOUR).unwrap();
            let alone = Jwt::new(method, None, Some(private), HOUR).unwrap();
            let reader = Jwt::new(method, Some(public), None, HOUR).unwrap();
            let bob = Some(Client { user: "bob".into(), auth_revision: 3 });
            for token in [both.sign("bob", 3).unwrap(), alone.sign("bob", 3).unwrap()] {
                for verifier in [&both, &alone, &reader] {
                    assert_eq!(verifier.verify(&token), bob, "{method}");
                }
            }
            assert_eq!(reader.sign("bob", 3), Err(Error::VerifyOnly));
        }
        let (_, other) = rsa_pair();
        let refusal = Jwt::new("RS256", Some(other.as_bytes()), Some(private), HOUR).unwrap_err();
        assert_eq!(refusal, "public and private keys don't match");
    }

    /// Keys as openssl writes them: `ecparam -name prime256v1 -genkey`, and `-name secp384r1`.
    const P256: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\n\
        MHcCAQEEIOvh1AQhv9X3OO+EQQ8+OUZhOZDhOUADmq64fB3ptphToAoGCCqGSM49\n\
        AwEHoUQDQgAEOxbBB3+RDcm3gdjg7eFOIWd6g/P0fM+ZhC24DgdPBhSs8Z9zKhrf\n\
        avcKOUsoIQmrsiDPBghubClEbR7tBKcDvw==\n\
        -----END EC PRIVATE KEY-----\n";
    const P384: &str = "-----BEGIN EC PRIVATE KEY-----\n\
        MIGkAgEBBDCQSKgPihNAi/J5/IMhNhEMLGhhk0aSZyjzfHxs7M+ZGvuN77OdvFlx\n\
        NBEH1EMP+imgBwYFK4EEACKhZANiAAQQRq54vKUqYHc/eMuce3GQB2xjuGr0uQYK\n\
        YV7aumdFq4NgMRjbOcUT+HgF5ax0z8ApilepffXocnRl41hfszhNSBZqWo88M6xT\n\
        6ZJv4wleGed7Klr0GSmNAaxDWAWF6/A=\n\
        -----END EC PRIVATE KEY-----\n";

    #[test]
    fn ec_keys_are_read_as_openssl_writes_them() {
        for (method, pem) in [("ES256", P256), ("ES384", P384)] {
            let jwt = Jwt::new(method, None, Some(pem.as_bytes()), HOUR).unwrap();
            let token = jwt.sign("eve", 2).unwrap();
            assert_eq!(jwt.verify(&token), Some(Client { user: "eve".into(), auth_revision: 2 }));
        }
        let other = Jwt::new("ES384", None, Some(P256.as_bytes()), HOUR).unwrap_err();
        assert!(other.contains("ES384 takes a key on P-384"), "{other}");
    }

    #[test]
    fn an_ed25519_key_alone_signs_and_verifies() {
        // A private key in PKCS#8, as openssl writes it, of 32 times 7.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n\
                   -----END PRIVATE KEY-----\n";
        let jwt = Jwt::new("EdDSA", None, Some(pem.as_bytes()), HOUR).unwrap();
        let token = jwt.sign("eve", 2).unwrap();
        assert_eq!(jwt.verify(&token), Some(Client { user: "eve".into(), auth_revision: 2 }));
    }

    #[test]
    fn bad_keys_are_refused_in_words() {
        let refusal = |method: &str, public: Option<&[u8]>, private: Option<&[u8]>| {
            Jwt::new(method, public, private, HOUR).unwrap_err()
        };
        assert!(refusal("NONE", None, None).contains("RS256, RS384"));
        assert!(refusal("ES512", None, None).contains("cannot make or check: use one of RS256"));
        assert!(refusal("RS256", None, None).contains("missing key data"));
        assert!(refusal("HS256", Some(b"x"), None).contains("missing key data"));
        assert!(refusal("RS256", Some(b"x"), None).contains("not a valid RSA public key"));
        assert!(refusal("EdDSA", None, Some(b"x")).contains("not a valid Ed25519 private key"));
    }

    /// Claims that somebody signed who has the key: etcd's other members, or a service that hands tokens out.
    #[test]
    fn fuzz_token_claims() {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let jwt = Jwt::new("HS256", None, Some(b"secret"), HOUR).unwrap();
        let key = EncodingKey::from_secret(b"secret");
        let seal = |header: &[u8], claims: &[u8]| {
            let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            let seal = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
            format!("{message}.{seal}")
        };
        const HEADER: &[u8] = br#"{"alg":"HS256","typ":"JWT"}"#;
        let good = br#"{"username":"eve","revision":2,"exp":99999999999}"#;
        assert_eq!(jwt.verify(&seal(HEADER, good)), Some(Client { user: "eve".into(), auth_revision: 2 }));
        let seeds: [&[u8]; 4] = [
            good,
            br#"{"username":"","revision":1e300,"exp":1.5,"nbf":null,"iat":"x","aud":["a"]}"#,
            br#"{"username":"eve","revision":-1}
{"alg":"HS256"}"#,
            br#"{"username":"a"}
{"alg":"none","kid":"x","jwk":{},"x5c":[""],"crit":["exp"]}"#,
        ];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "token_claims").seeds(seeds);
        fuzz.words(&[
            "\"exp\":",
            "\"nbf\":",
            "\"revision\":",
            "1e400",
            "-0.0",
            "null",
            "\"alg\":",
            "\"HS512\"",
            "{",
            "}",
        ])
        .run(|bytes| {
            let mut lines = bytes.splitn(2, |b| *b == b'\n');
            let claims = lines.next().unwrap_or_default();
            let token = seal(lines.next().unwrap_or(HEADER), claims);
            // Why it is not good is told to nobody; here it tells inputs apart.
            let why = jsonwebtoken::decode::<Claims>(&token, &jwt.keys.verify, &jwt.keys.validation);
            format!("{:?} {:?}", why.map(|_| ()).map_err(|e| e.to_string()), jwt.verify(&token).is_some())
        });
    }

    #[test]
    fn fuzz_token_key() {
        let sec1 = [(6, P256), (7, P384)].map(|(method, pem)| [&[method][..], pem.as_bytes()].concat());
        let ed = b"\x08-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n\
                   -----END PRIVATE KEY-----\n";
        let seeds = sec1.into_iter().chain([ed.to_vec(), b"\x09secret".to_vec()]);
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "token_key").seeds(seeds);
        let words = ["-----BEGIN PUBLIC KEY-----\n", "-----BEGIN RSA PUBLIC KEY-----\n", "-----END", "PRIVATE", "EC "];
        // Whoever finds a good key lets the library calculate with it; a few hundred are a second's work.
        fuzz.words(&words).quick(400).run(|bytes| {
            let (choice, pem) = bytes.split_first().unwrap_or((&0, b""));
            let (method, _) = METHODS[*choice as usize % METHODS.len()];
            let [private, public] = [(None, Some(pem)), (Some(pem), None)]
                .map(|(public, private)| Jwt::new(method, public, private, HOUR).map(|_| ()));
            format!("{method} {private:?} {public:?}")
        });
    }

    #[test]
    fn fuzz_token() {
        let jwt = Jwt::new("HS256", None, Some(b"secret"), Duration::from_secs(60)).unwrap();
        let seeds =
            [jwt.sign("alice", 4).unwrap(), "eyJhbGciOiJub25lIn0.e30.".to_owned(), "abcdefghijklmnop.17".to_owned()];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "token").seeds(seeds);
        fuzz.words(&[".", "eyJ", "e30", "=", "-_"]).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let index = crate::auth::tokens::index_of(&text);
            format!("{:?} {:?}", jwt.verify(&text), index.is_some())
        });
    }
}
