//! Wire types and services: etcd's public gRPC API, our own Restore service, the peer protocol and what collectors
//! of traces and readers of profiles take, generated from the .proto files of this crate. Every `bytes` field is a [`bytes::Bytes`].
//!
//! Names follow prost's rules, which shows in a few places: `peerURLs` is `peer_ur_ls`, `clientURLs` is `client_ur_ls`,
//! `ID` is `id`, `grantedTTL` is `granted_ttl`.

// Generated: its documentation is the comments of the .proto files, where a field needs one.
#[allow(missing_docs, clippy::all)]
mod packages {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::authpb;
pub use packages::etcdserverpb;
pub use packages::ferretcd::peer::v1 as peer;
pub use packages::ferretcd::v1 as ferretcd_v1;
pub use packages::grpc::health::v1 as health;
pub use packages::leasepb;
pub use packages::mvccpb;
pub use packages::opentelemetry::proto::collector::trace::v1 as otlp;
pub use packages::perftools::profiles as pprof;
pub use packages::v3electionpb;
pub use packages::v3lockpb;

/// The .proto files themselves, as an encoded `FileDescriptorSet`: what the JSON gateway reads the fields' names from.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
