//! Environment variables. A value that is no text is said to be none: to pass over it would start a
//! node with other settings than it was given.

use std::env::VarError;

/// What a variable says; `None`: it is not set.
///
/// # Errors
/// It is no UTF-8. The value is not shown: it may be a token.
pub(crate) fn text(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(format!("the value of {name} is no UTF-8")),
    }
}
