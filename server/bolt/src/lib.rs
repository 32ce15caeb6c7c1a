//! ferretcd-bolt
