//! ferretcd-operator-api
