//! ferretcd-storage
