//! Answers in gzip for clients that ask for it, as Prometheus does for `/metrics`.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, header::ACCEPT_ENCODING};

/// Whether `Accept-Encoding` prefers gzip to plain bytes, by the rules of Go's Prometheus client: `*` means both, and of
/// two that are liked alike the plain one is taken.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let (mut gzip, mut plain) = (0.0, 0.0);
    for part in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')) {
        let (name, rest) = part.split_once(';').unwrap_or((part, ""));
        let quality = rest.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse::<f32>().ok());
        let quality = quality.filter(|q| q.is_finite()).unwrap_or_default();
        for (is_named, best) in [("gzip", &mut gzip), ("identity", &mut plain)] {
            if [is_named, "*"].contains(&name.trim()) && quality > *best {
                *best = quality;
            }
        }
    }
    gzip > plain
}

/// The bytes in gzip. Fast rather than small: figures shrink to a tenth anyway, and a scrape shares its thread.
pub fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn gzip_is_taken_by_those_who_prefer_it() {
        let wanted = |text: &'static str| is_wanted(&HeaderMap::from_iter([(ACCEPT_ENCODING, text.parse().unwrap())]));
        for text in ["gzip", "deflate, gzip;q=0.5, zstd", "gzip;q=1.0, identity;q=0.5", "identity;q=0,gzip"] {
            assert!(wanted(text), "{text}");
        }
        for text in ["", "*", "*, gzip", "identity", "gzip;q=0", "gzip;q=0, identity", "gzip;q=x", "br", "gzip;q=NaN"] {
            assert!(!wanted(text), "{text}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn what_is_packed_is_what_was_there() {
        let text = "etcd_server_has_leader 1\n".repeat(1000);
        let packed = pack(text.as_bytes()).unwrap();
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut unpacked).unwrap();
        assert!(unpacked == text && packed.len() < text.len() / 10, "{} of {}", packed.len(), text.len());
    }
}
