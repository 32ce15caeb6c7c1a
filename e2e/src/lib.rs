//! ferretcd-e2e
