//! URLs as flags name them: a scheme with host and port, or with a socket's path.

use std::fmt;

/// How somebody is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    /// Whether it stands for TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// Whether it stands for a Unix socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }
}

/// A URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Its scheme.
    pub scheme: Scheme,
    /// `host:port`, or the path of a socket.
    pub place: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.place)
    }
}

impl Url {
    /// Reads one, with etcd's errors.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let unknown = || format!("URL scheme must be http, https, unix, or unixs: {text}");
        // Go writes schemes in small letters, and a socket's path may follow its scheme's colon at once.
        let socket =
            || text.split_once(':').filter(|(s, p)| s.to_ascii_lowercase().starts_with("unix") && p.starts_with('/'));
        let Some((scheme, place)) = text.split_once("://").or_else(socket) else {
            // Go takes what stands before the first colon for a scheme, if it can be one.
            let first = text.split('/').next().unwrap_or_default();
            let is_scheme = first.starts_with(|c: char| c.is_ascii_alphabetic());
            return Err(if first.contains(':') && !is_scheme {
                format!("parse {text:?}: first path segment in URL cannot contain colon")
            } else {
                unknown()
            });
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(unknown()),
        };
        let url = Url { scheme, place: place.to_owned() };
        if scheme.is_unix() {
            return if place.is_empty() { Err(format!("URL names no socket: {text}")) } else { Ok(url) };
        }
        let (host, path) = place.split_once('/').map_or((place, None), |(host, path)| (host, Some(path)));
        match split_host_port(host) {
            None => Err(format!("URL address does not have the form \"host:port\": {text}")),
            Some((_, port)) if !port.bytes().all(|b| b.is_ascii_digit()) => {
                Err(format!("parse {text:?}: invalid port \":{port}\" after host"))
            }
            Some(_) if path.is_some() => Err(format!("URL must not contain a path: {text}")),
            Some(_) => Ok(url),
        }
    }

    /// Host and port; an IPv6 address comes without its brackets. Nothing for a socket.
    pub fn host_port(&self) -> Option<(&str, &str)> {
        if self.scheme.is_unix() { None } else { split_host_port(&self.place) }
    }
}

fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

/// URLs with commas between them: sorted, and each once, as etcd holds them.
pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
    let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort_by_key(Url::to_string);
    urls.dedup();
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_refused_in_etcds_words() {
        for (text, error) in [
            ("127.0.0.1:1", "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon"),
            ("localhost:1", "URL scheme must be http, https, unix, or unixs: localhost:1"),
            ("foo", "URL scheme must be http, https, unix, or unixs: foo"),
            ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://a:1/x", "URL must not contain a path: http://a:1/x"),
            ("http://a:b", "parse \"http://a:b\": invalid port \":b\" after host"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn schemes_have_any_case_and_sockets_one_slash_or_three() {
        for (text, same) in [
            ("HTTPS://127.0.0.1:1", "https://127.0.0.1:1"),
            ("unix:/tmp/x", "unix:///tmp/x"),
            ("Unixs:///tmp/x", "unixs:///tmp/x"),
            ("unix://localhost:1", "unix://localhost:1"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), same);
        }
    }

    #[test]
    fn a_list_is_sorted_and_has_each_once() {
        let urls = parse_list("http://b:1, http://a:1,unix:///tmp/x,http://b:1").unwrap();
        let texts: Vec<String> = urls.iter().map(Url::to_string).collect();
        assert_eq!(texts, ["http://a:1", "http://b:1", "unix:///tmp/x"]);
        assert_eq!(Url::parse("https://[::1]:2379").unwrap().host_port(), Some(("::1", "2379")));
    }
}
