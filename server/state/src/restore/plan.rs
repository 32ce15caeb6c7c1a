//! From a snapshot file to the records of a restore.
