//! `--auth-token`: what it says, as etcd reads it, and the key files that it names.

use ferretcd_node::{Jwt, TokenKind};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a signed token is good when nothing else is said (etcd's default).
const JWT_TTL: Duration = Duration::from_secs(300);

/// Checks `simple` or `jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=5m`, and reads the keys. `duration` reads Go's
/// durations.
pub fn check(text: &str, duration: impl Fn(&str) -> Option<Duration>) -> Result<TokenKind, String> {
    let bad = |why: String| format!("invalid --auth-token {text:?}: {why} (auth: invalid auth options)");
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let Some((name, value)) = part.split_once('=') else {
            return Err(bad(format!("{part:?} is not of the form name=value")));
        };
        if options.insert(name, value).is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
    }
    match kind {
        "simple" => {
            tracing::warn!("simple token is not cryptographically signed");
            Ok(TokenKind::Simple)
        }
        "jwt" => jwt(options, duration).map(TokenKind::Jwt).map_err(bad),
        _ => Err(bad("use simple or jwt".to_owned())),
    }
}

fn jwt(mut options: BTreeMap<&str, &str>, duration: impl Fn(&str) -> Option<Duration>) -> Result<Jwt, String> {
    let file = |path: Option<&str>| {
        path.map(|path| std::fs::read(path).map_err(|e| format!("cannot read {path}: {e}"))).transpose()
    };
    let method = options.remove("sign-method").unwrap_or_default();
    let public = file(options.remove("pub-key"))?;
    let private = file(options.remove("priv-key"))?;
    let ttl = match options.remove("ttl") {
        Some(text) => duration(text).ok_or_else(|| format!("invalid ttl {text:?}: a duration such as 5m"))?,
        None => JWT_TTL,
    };
    if !options.is_empty() {
        // etcd warns, too, and goes on.
        let names: Vec<_> = options.into_keys().collect();
        tracing::warn!(?names, "unknown JWT options");
    }
    Jwt::new(method, public.as_deref(), private.as_deref(), ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        check(text, |_| None).unwrap_err()
    }

    #[test]
    fn simple_tokens_need_no_more() {
        assert!(matches!(check("simple", |_| None), Ok(TokenKind::Simple)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, needle) in [
            ("", "use simple or jwt"),
            ("token", "use simple or jwt"),
            ("jwt", "invalid auth signature method"),
            ("jwt,sign-method=RS256", "missing key data"),
            ("jwt,sign-method", "\"sign-method\" is not of the form name=value"),
            ("jwt,sign-method=RS256,sign-method=RS256", "given twice"),
            ("jwt,sign-method=RS256,pub-key=/no/such/file", "/no/such/file"),
            ("jwt,sign-method=RS256,ttl=soon", "invalid ttl \"soon\""),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(needle) && refusal.contains("auth: invalid auth options"), "{refusal}");
        }
    }
}
