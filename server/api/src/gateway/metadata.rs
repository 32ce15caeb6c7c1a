//! What of an HTTP request's headers goes into the gRPC call, by grpc-gateway's rules.

use std::time::Duration;

use http::HeaderMap;
use tonic::{
    Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
};

/// The call's metadata: the token under its own name, and everything behind `Grpc-Metadata-`.
pub fn of(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str() {
            "authorization" => "authorization",
            other => other.strip_prefix("grpc-metadata-").unwrap_or_default(),
        };
        // What gRPC cannot carry is left out, and so is binary metadata: none of etcd's methods looks at any.
        if !value.as_bytes().iter().all(|b| matches!(b, b' '..=b'~')) {
            continue;
        }
        let key = AsciiMetadataKey::from_bytes(name.as_bytes());
        if let (Ok(key), Ok(value)) = (key, AsciiMetadataValue::try_from(value.as_bytes())) {
            metadata.append(key, value);
        }
    }
    metadata
}

/// How long the call may take, if the client says so (`Grpc-Timeout: 500m`).
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(given) = headers.get("grpc-timeout").filter(|v| !v.is_empty()) else { return Ok(None) };
    let shown = String::from_utf8_lossy(given.as_bytes());
    decode(&shown).map_err(|()| Status::invalid_argument(format!("invalid grpc-timeout: {shown}")))
}

fn decode(text: &str) -> Result<Option<Duration>, ()> {
    let (number, unit) = text.split_at_checked(text.len().wrapping_sub(1)).ok_or(())?;
    let nanoseconds: i64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1000,
        "n" => 1,
        _ => return Err(()),
    };
    match number.parse::<i64>() {
        Ok(0) => Ok(None),
        // One below zero is over before it begins.
        Ok(number) => Ok(Some(Duration::from_nanos(number.saturating_mul(nanoseconds).try_into().unwrap_or_default()))),
        Err(_) => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_token_and_what_is_marked_as_metadata_goes_along() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "t.1"),
            ("grpc-metadata-hasleader", "true"),
            ("token", "t.2"),
            ("grpc-metadata-", "x"),
            ("content-type", "text/xml"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert("grpc-metadata-odd", HeaderValue::from_bytes(b"\xff").unwrap());
        let metadata = of(&headers);
        assert_eq!(metadata.get("authorization").unwrap(), "t.1");
        assert_eq!(metadata.get("hasleader").unwrap(), "true");
        assert_eq!(metadata.len(), 2, "{metadata:?}");
    }

    #[test]
    fn timeouts_are_a_number_and_a_unit() {
        let of = |text: &'static str| {
            timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_static(text))]))
        };
        assert_eq!(of("500m").unwrap(), Some(Duration::from_millis(500)));
        assert_eq!(of("2H").unwrap(), Some(Duration::from_secs(7200)));
        assert_eq!(of("-1S").unwrap(), Some(Duration::ZERO));
        assert_eq!(of("0n").unwrap(), None);
        for text in ["5", "S", "1x", "xS", "1.5S"] {
            assert_eq!(of(text).unwrap_err().message(), format!("invalid grpc-timeout: {text}"));
        }
    }
}
