//! Whose call it is: what of a client's metadata goes on to the members.

use http::HeaderMap;
use tonic::Request;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

/// Who asks, as far as the members need it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// `token` or `authorization`, whichever came.
    credential: Option<(&'static str, AsciiMetadataValue)>,
    /// The call wants to end when its member has no leader.
    pub wants_leader: bool,
    /// What else is passed on.
    others: Vec<(&'static str, AsciiMetadataValue)>,
}

/// Passed on as they are: what the members count clients by, and the time that the client gives its call.
const OTHERS: [&str; 2] = ["client-api-version", "grpc-timeout"];

impl Caller {
    /// From the metadata of a client's call.
    pub fn of(metadata: &MetadataMap) -> Self {
        let credential =
            ["token", "authorization"].into_iter().find_map(|name| Some((name, metadata.get(name)?.clone())));
        Caller {
            credential,
            wants_leader: metadata.get("hasleader").is_some_and(|value| value == "true"),
            others: OTHERS.into_iter().filter_map(|name| Some((name, metadata.get(name)?.clone()))).collect(),
        }
    }

    /// Whether it names somebody. Then what it reads may not be shown to others.
    pub fn is_somebody(&self) -> bool {
        self.credential.is_some()
    }

    /// What two calls must share to see the same.
    pub fn standing(&self) -> Standing {
        let credential = self.credential.as_ref().map(|(name, value)| (*name, value.as_bytes().to_vec()));
        Standing { credential, wants_leader: self.wants_leader }
    }

    /// The same caller for a stream of the proxy's own, which outlives the call that it began with.
    pub fn lasting(&self) -> Self {
        Caller { others: Vec::new(), ..self.clone() }
    }

    /// A request of this caller.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        for (name, value) in self.credential.iter().chain(&self.others) {
            metadata.insert(*name, value.clone());
        }
        if self.wants_leader {
            metadata.insert("hasleader", AsciiMetadataValue::from_static("true"));
        }
        request
    }
}

/// Callers with the same standing can share a watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    credential: Option<(&'static str, Vec<u8>)>,
    wants_leader: bool,
}

/// Removes what belongs to one connection before a request or an answer goes on over another (RFC 9113, 8.2.2); `te` is
/// the one that gRPC needs.
pub fn pass_headers(headers: &mut HeaderMap) {
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host"] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&'static str, &'static str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (name, value) in pairs {
            map.insert(*name, AsciiMetadataValue::from_static(value));
        }
        map
    }

    #[test]
    fn the_token_the_leader_and_the_time_go_on_and_nothing_else() {
        let caller =
            Caller::of(&metadata(&[("token", "t"), ("hasleader", "true"), ("grpc-timeout", "1S"), ("x", "y")]));
        let request = caller.request(());
        let seen = |name: &str| request.metadata().get(name).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(seen("token").as_deref(), Some("t"));
        assert_eq!(seen("hasleader").as_deref(), Some("true"));
        assert_eq!(seen("grpc-timeout").as_deref(), Some("1S"));
        assert_eq!(seen("x"), None);
        assert!(caller.lasting().request(()).metadata().get("grpc-timeout").is_none());
    }

    #[test]
    fn callers_with_different_tokens_have_different_standings() {
        let standing = |pairs: &[(&'static str, &'static str)]| Caller::of(&metadata(pairs)).standing();
        assert_ne!(standing(&[("token", "a")]), standing(&[("token", "b")]));
        assert_ne!(standing(&[("token", "a")]), standing(&[]));
        assert_ne!(standing(&[("hasleader", "true")]), standing(&[]));
        assert_eq!(standing(&[("token", "a"), ("grpc-timeout", "1S")]), standing(&[("token", "a")]));
    }
}
