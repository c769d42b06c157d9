//! What the tool writes to its terminal. The only file that does.

use std::io::{self, Write};

/// A line on stdout.
pub(crate) fn line(text: &str) {
    let mut stdout = io::stdout().lock();
    let _nobody_reads = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// A line on stderr: how far we are, and why something is not measured.
pub(crate) fn note(text: &str) {
    let _nobody_reads = writeln!(io::stderr().lock(), "{text}");
}
