//! Wire messages to values and back: the only file family that sees both.
//!
//! What comes in has passed [`crate::validate`]; so the ways in are total wherever that makes them so, and only an
//! operation without content is still refused here.

pub mod cluster;
pub mod kv;
pub mod watch;

use ferretcd_proto::mvccpb;
use ferretcd_types::KeyValue;

/// A record as clients see it.
pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    let KeyValue { key, create_revision, mod_revision, version, value, lease } = kv;
    mvccpb::KeyValue { key, create_revision, mod_revision, version, value, lease: lease.0 }
}

fn key_values(kvs: Vec<KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(key_value).collect()
}
