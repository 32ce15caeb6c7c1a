//! ferretcd-state
