//! etcd's snapshot file: a bbolt version 2 database followed by its SHA-256.
//!
//! [`Layout`] and [`Writer`] stream such a file out of sorted records in two passes and without a temporary copy;
//! [`File`] reads and validates one, whoever wrote it. Nothing here knows what the records mean, except
//! [`RevisionKey`] and the few fields that [`Summary`] shares with `etcdutl snapshot status`.

mod format;
mod layout;
mod reader;
mod rev;
mod summary;
mod tree;
mod writer;

pub use format::{MAX_BUCKETS, MAX_KEY_BYTES, MAX_VALUE_BYTES, MetaDamage, PAGE_SIZE, TRAILER_BYTES};
pub use layout::{InputError, Layout, LayoutBuilder};
pub use reader::{Damage, Error, File, ReadAt, Trailer};
pub use rev::{RevisionKey, RevisionKeyError};
pub use summary::{Summary, ValueDamage};
pub use writer::{CHUNK_BYTES, WriteError, Writer};
