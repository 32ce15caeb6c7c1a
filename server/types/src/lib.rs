//! ferretcd-types
