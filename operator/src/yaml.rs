//! The only place that knows YAML: it writes the custom resource definitions and the generated parts of the chart.

use serde::Serialize;

/// One value as a YAML document.
///
/// # Errors
/// A value that YAML cannot express, such as a map with a structure as its key.
pub fn document<T: Serialize>(value: &T) -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(value)
}

/// Several values as one stream of documents.
///
/// # Errors
/// As [`document`].
pub fn documents<T: Serialize>(values: &[T]) -> Result<String, serde_yaml::Error> {
    let mut text = String::new();
    for value in values {
        text.push_str("---\n");
        text.push_str(&document(value)?);
    }
    Ok(text)
}

/// Reads one YAML document.
///
/// # Errors
/// Text that is not YAML or lacks what `T` needs; the message names line and column.
pub fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_yaml::Error> {
    serde_yaml::from_str(text)
}
