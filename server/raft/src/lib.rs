//! ferretcd-raft
