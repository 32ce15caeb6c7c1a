//! ferretcd-node
