//! `completions` and `man`: what the command line says of itself, for shells and for `man`.

use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;

pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

pub(crate) fn man(dir: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
        Failure::failed(format!("cannot write man pages into {}: {error}", dir.display()))
    })
}
