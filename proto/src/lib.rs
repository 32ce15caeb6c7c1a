//! ferretcd-proto
