//! ferretcd-api
