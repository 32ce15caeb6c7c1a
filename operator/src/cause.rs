//! The text of an error with its causes.

use std::error::Error;

/// An error and what caused it, outermost first. Many libraries repeat the cause in their own text; no cause is said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
