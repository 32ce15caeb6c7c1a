//! ferretcd-wal
