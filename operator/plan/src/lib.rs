//! ferretcd-operator-plan
