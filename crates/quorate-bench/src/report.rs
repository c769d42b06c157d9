//! The result as one HTML file.

use crate::measure::Outcome;

/// The whole file.
pub(crate) fn html(_outcome: &Outcome) -> String {
    String::new()
}
