//! What the API server's refusals mean to us.

use kube::{Error, core::Status};

/// The API server's own answer, if it gave one.
fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::Api(status) => Some(status),
        _ => None,
    }
}

/// There is no such object.
pub fn is_not_found(error: &Error) -> bool {
    status(error).is_some_and(Status::is_not_found)
}

/// The world is not what it was when we decided: the object exists already, has another resourceVersion or another UID. A
/// patch with a UID that is not the object's is refused as a change of an immutable field.
pub fn is_conflict(error: &Error) -> bool {
    status(error).is_some_and(|status| {
        status.is_conflict()
            || status.is_already_exists()
            || (status.is_invalid() && status.message.contains("metadata.uid"))
    })
}

/// The error in one sentence: the API server's own words, or what kept us from hearing them.
pub fn text(error: &Error) -> String {
    match status(error) {
        Some(status) => status.message.clone(),
        None => crate::cause::chain(error),
    }
}
